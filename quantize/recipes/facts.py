"""The few numbers of a model that llama-quantize's rules ask for, and that any GGUF file has."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from quantize.containers.keys import KeyValue, elements
from quantize.hparams import Hparams

__all__ = ["RecipeFacts"]


@dataclass(frozen=True)
class RecipeFacts:
    """The numbers of a model that the rules ask for."""

    arch: str  # general.architecture
    n_layer: int
    n_head: int
    n_head_kv: int
    n_expert: int = 0

    @property
    def n_gqa(self) -> int:
        """Query heads per key head (0 where there are no key heads)."""
        return self.n_head // self.n_head_kv if self.n_head_kv else 0

    @classmethod
    def of(cls, hparams: Hparams) -> RecipeFacts:
        """The facts of a model whose hyper-parameters are known."""
        return cls(hparams.arch, hparams.n_layer, hparams.n_head, hparams.n_head_kv, hparams.n_expert)

    @classmethod
    def of_keys(cls, arch: str, keys: Iterable[KeyValue]) -> RecipeFacts:
        """The facts of any model, from its `{arch}.*` keys (src/llama-model.cpp: load_hparams).

        A key that is missing counts as 0, n_head_kv as n_head; of numbers that differ by layer the first one counts,
        as in llama-quantize. Of a key that stands twice the later one counts: settings made by hand come last.
        """
        prefix = f"{arch}."
        values = {kv.key.removeprefix(prefix): kv.value for kv in keys if kv.key.startswith(prefix)}

        def size(name: str, default: int = 0) -> int:
            value = values.get(name, default)
            array = elements(value)
            first = value if array is None else next(iter(array), default)
            return first if type(first) is int else default

        n_head = size("attention.head_count")
        n_head_kv = size("attention.head_count_kv", n_head)
        return cls(arch, size("block_count"), n_head, n_head_kv, size("expert_count"))
