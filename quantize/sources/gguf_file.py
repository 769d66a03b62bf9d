"""A finished GGUF file, ours or anybody's: its keys, its tensors, and its weights as a `TensorSource`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from quantize.codec import decode
from quantize.containers.gguf import GGUFTensor, read_container
from quantize.containers.untrusted import quoted
from quantize.exceptions import GGUFError
from quantize.hparams import Hparams, RopeScaling
from quantize.tensors import NUMPY_TYPES, Array, Rows, TensorSpec

__all__ = ["GGUFFile", "GGUFTensor"]


class GGUFFile:
    """An open GGUF file as a `TensorSource`; quantized tensors are handed out decoded to float32.

    Raises:
        GGUFError: not a GGUF file, truncated, or damaged; on construction or on reading.
    """

    def __init__(self, path: Path) -> None:
        """Read keys and tensor infos; no weight is touched."""
        self.path = path
        container = read_container(path)
        self.n_bytes, self.alignment = container.n_bytes, container.alignment
        self.keys, self.types = dict(container.keys), dict(container.types)
        self.tensors = dict(container.tensors)
        self.bytes_read = 0

    def specs(self) -> Sequence[TensorSpec]:
        """All tensors in file order."""
        return [stored.spec for stored in self.tensors.values()]

    def read(self, spec: TensorSpec, xid: int = 0, rows: Rows | None = None) -> Array:
        """One expert's matrix or some of its rows; see `TensorSource.read`."""
        first, last = rows or (0, spec.n_row)
        blocks = self.read_blocks(spec, xid, (first, last))
        if spec.qtype in NUMPY_TYPES:
            return blocks.view(NUMPY_TYPES[spec.qtype])
        return decode(blocks, spec.qtype, spec.n_per_row)

    def read_blocks(self, spec: TensorSpec, xid: int, rows: Rows) -> Array:
        """The stored bytes of rows of one expert: uint8 [n_rows, bytes per row]."""
        stored = self.tensors[spec.name]
        row_bytes = stored.n_bytes * spec.n_per_row // spec.n_elements
        first, last = rows
        found = np.empty((last - first, row_bytes), np.uint8)
        left = found.data.cast("B")
        try:
            with self.path.open("rb", buffering=0) as file:
                file.seek(stored.offset + (xid * spec.n_row + first) * row_bytes)
                while left and (n_read := file.readinto(left)):
                    left = left[n_read:]
        except OSError as error:
            raise GGUFError(f"{self.path}: {quoted(spec.name)}: cannot be read: {error.strerror}") from None
        if left:
            raise GGUFError(
                f"{self.path}: {quoted(spec.name)}: became shorter while it was read; fetch it again"
            )
        self.bytes_read += found.nbytes
        return found

    @cached_property
    def hparams(self) -> Hparams:
        """The model's dimensions, from its keys.

        Raises:
            GGUFError: a key that the model cannot do without is missing.
        """
        arch = self._text("general.architecture")

        def size(name: str, *default: int) -> int:
            return self._size(f"{arch}.{name}", *default)

        def real(name: str, *default: float | None) -> Any:
            return self._real(f"{arch}.{name}", *default)

        n_embd, n_head = size("embedding_length"), size("attention.head_count")
        if n_head < 1:
            raise GGUFError(f"{self.path}: {arch}.attention.head_count is 0; is this a model?")
        embedding = self.tensors.get("token_embd.weight")
        if embedding is None:
            raise GGUFError(f"{self.path}: token_embd.weight is missing; is this a model?")
        return Hparams(
            arch=arch,
            n_layer=size("block_count"),
            n_ctx_train=size("context_length"),
            n_embd=n_embd,
            n_ff=size("feed_forward_length"),
            n_head=n_head,
            n_head_kv=size("attention.head_count_kv", n_head),
            n_vocab=embedding.spec.n_row,
            head_dim=size("attention.key_length", n_embd // n_head),
            rms_norm_eps=real("attention.layer_norm_rms_epsilon"),
            rope_freq_base=real("rope.freq_base", 10000.0),
            rope_scaling=RopeScaling(
                kind=self._text(f"{arch}.rope.scaling.type", "none"),
                factor=real("rope.scaling.factor", 1.0),
                n_ctx_orig=size("rope.scaling.original_context_length", 0),
                ext_factor=real("rope.scaling.yarn_ext_factor", None),
                attn_factor=real("rope.scaling.yarn_attn_factor", None),
                beta_fast=real("rope.scaling.yarn_beta_fast", None),
                beta_slow=real("rope.scaling.yarn_beta_slow", None),
            ),
            n_expert=size("expert_count", 0),
            n_expert_used=size("expert_used_count", 0),
            head_dim_explicit=f"{arch}.attention.key_length" in self.keys,
        )

    def _key(self, name: str, *default: Any) -> Any:
        if name not in self.keys and not default:
            raise GGUFError(f"{self.path}: key {quoted(name)} is missing; is this a model?")
        return self.keys.get(name, *default)

    def _text(self, name: str, *default: str) -> str:
        value = self._key(name, *default)
        if not isinstance(value, str):
            raise GGUFError(f"{self.path}: key {quoted(name)} is {quoted(value)}, a text is expected")
        return value

    def _size(self, name: str, *default: int) -> int:
        value = self._key(name, *default)
        if type(value) is not int or not 0 <= value < 2**32:
            raise GGUFError(f"{self.path}: key {quoted(name)} is {quoted(value)}, one size is expected")
        return value

    def _real(self, name: str, *default: float | None) -> float | None:
        value = self._key(name, *default)
        if value is None:
            return None
        if type(value) not in (int, float) or not math.isfinite(value):
            raise GGUFError(f"{self.path}: key {quoted(name)} is {quoted(value)}, a number is expected")
        return float(value)
