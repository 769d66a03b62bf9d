"""The plan of a file: the resolved type, size and offset of every tensor, known before a weight is read."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

from quantize.recipes.ftypes import Ftype
from quantize.tensors import QType, TensorSpec, bits_per_weight

ALIGNMENT = 32
"""Bytes; every tensor starts at a multiple of them (`GGUF_DEFAULT_ALIGNMENT`)."""


def padded(n_bytes: int) -> int:
    """The next multiple of `ALIGNMENT`."""
    return -(-n_bytes // ALIGNMENT) * ALIGNMENT


@dataclass(frozen=True)
class PlannedTensor:
    """One tensor of the output: its type, and where its bytes lie in the data section."""

    spec: TensorSpec  # of the source
    qtype: QType
    offset: int  # bytes from the start of the data section, a multiple of ALIGNMENT
    requires_imatrix: bool = False  # must not be encoded without importances
    fallback_from: QType | None = None  # the intended type, where the rows do not divide into its blocks
    new_name: str | None = None  # in the file, where layers before it are left out

    @property
    def name(self) -> str:
        """Its name in the file; the source knows it by `spec.name`."""
        return self.spec.name if self.new_name is None else self.new_name

    @cached_property
    def target(self) -> TensorSpec:
        """The tensor as the file will hold it."""
        return replace(self.spec, name=self.name, qtype=self.qtype)

    @property
    def n_bytes(self) -> int:
        """Bytes of the tensor without padding."""
        return self.target.n_bytes

    @property
    def row_bytes(self) -> int:
        """Bytes of one row of blocks."""
        return self.target.row_bytes


@dataclass(frozen=True)
class Plan:
    """All tensors of a file in their order: by layer, then bytewise by name."""

    ftype: Ftype
    tensors: tuple[PlannedTensor, ...]
    unmatched: tuple[str, ...] = ()  # patterns of the recipe that decided no tensor's type
    n_layer: int | None = None  # layers that the file has, where some are left out

    @property
    def n_bytes(self) -> int:
        """Bytes of all tensors without padding, llama-quantize's "quant size"."""
        return sum(tensor.n_bytes for tensor in self.tensors)

    @property
    def data_bytes(self) -> int:
        """Bytes of the data section, the padding after each tensor included."""
        return sum(padded(tensor.n_bytes) for tensor in self.tensors)

    @property
    def bpw(self) -> float:
        """Bits per weight, of all tensors together."""
        return bits_per_weight(self.n_bytes, sum(tensor.spec.n_elements for tensor in self.tensors))

    @property
    def fallbacks(self) -> tuple[PlannedTensor, ...]:
        """The tensors whose rows do not divide into the blocks of the intended type."""
        return tuple(tensor for tensor in self.tensors if tensor.fallback_from is not None)
