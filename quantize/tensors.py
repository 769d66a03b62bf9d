"""The two nouns on which everything else stands: the description of a tensor, and a source of tensors."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from quantize.ggml_types import QType
from quantize.hparams import Hparams

__all__ = [
    "Array",
    "QType",
    "Rows",
    "TensorSource",
    "TensorSpec",
    "bits_per_weight",
    "layer_of",
    "names_experts",
    "same_shape",
]

Array = npt.NDArray[Any]
Rows = tuple[int, int]  # a half-open range of rows of one matrix

EXPERTS = ("_exps.", "_chexps.")
"""One of them stands in the name of every stack of experts, chunk experts included (llama.cpp: src/llama-arch.cpp)."""

_LAYER = re.compile(r"blk\.(\d+)\.")

NUMPY_TYPES: dict[QType, np.dtype[Any]] = {
    QType.F32: np.dtype("<f4"),
    QType.F16: np.dtype("<f2"),
    QType.BF16: np.dtype("<u2"),
}
"""How `TensorSource.read` hands out each stored float type; uint16 always means the bits of bfloat16."""


@dataclass(frozen=True)
class TensorSpec:
    """One tensor as GGUF knows it; it holds no data and no Hugging Face name.

    `shape` is (n_out, n_in) for a matrix, (n,) for a vector, and has more axes in front for a stack of matrices: the
    NumPy order, the reverse of ggml's `ne`. `qtype` is the type in which the source stores it.

    A stack is read and written one matrix at a time. llama.cpp calls the stacks of experts `..._exps` or `..._chexps`;
    others, such as the heads of `attn_k_b`, have no experts.
    """

    name: str
    shape: tuple[int, ...]
    qtype: QType

    @property
    def bid(self) -> int | None:
        """The layer in the tensor's name, None where there is none."""
        return layer_of(self.name)

    @property
    def has_experts(self) -> bool:
        """Whether the first axis counts experts."""
        return len(self.shape) == 3 and names_experts(self.name)

    @property
    def is_matrix(self) -> bool:
        """Whether there are rows at all: not a vector."""
        return len(self.shape) > 1

    @property
    def n_matrix(self) -> int:
        """Number of matrices: the experts of a stack of experts, 1 for a matrix or a vector."""
        return math.prod(self.shape[:-2])

    @property
    def n_row(self) -> int:
        """Rows of one matrix; a vector is one row."""
        return self.shape[-2] if len(self.shape) > 1 else 1

    @property
    def n_per_row(self) -> int:
        """Weights of one row, ggml's `ne[0]`."""
        return self.shape[-1]

    @property
    def n_elements(self) -> int:
        """Number of weights."""
        return math.prod(self.shape)

    @property
    def row_bytes(self) -> int:
        """Bytes of one row as it is stored (`ggml_row_size`); the rows divide into the blocks of `qtype`."""
        return self.n_per_row // self.qtype.block_size * self.qtype.type_size

    @property
    def n_bytes(self) -> int:
        """Bytes of the whole tensor as it is stored, without padding."""
        return self.row_bytes * self.n_row * self.n_matrix

    def label(self, xid: int = 0) -> str:
        """One matrix as messages call it: the tensor, and the expert where there are experts."""
        if self.n_matrix == 1 and not self.has_experts:
            return self.name
        return f"{self.name}, {'expert' if self.has_experts else 'matrix'} {xid}"


def layer_of(name: str) -> int | None:
    """The layer in the GGUF name of a tensor, None where the tensor belongs to none."""
    match = _LAYER.match(name)
    return int(match[1]) if match else None


def bits_per_weight(n_bytes: int, n_elements: int) -> float:
    """What some tensors take together; 0 where there are no weights."""
    return 8 * n_bytes / max(1, n_elements)


def same_shape(one: Sequence[int], other: Sequence[int]) -> bool:
    """Whether shapes are the same but for axes of length one, which mean nothing to ggml."""
    return [n for n in one if n != 1] == [n for n in other if n != 1]


def names_experts(name: str) -> bool:
    """Whether the GGUF name of a tensor is that of a stack of experts, or of the biases of experts."""
    return any(word in name for word in EXPERTS)


class TensorSource(Protocol):
    """A source that hands out the tensors of one model (see `quantize.sources` for all that a model can be asked)."""

    @property
    def hparams(self) -> Hparams:
        """The model's dimensions and switches."""
        ...

    def specs(self) -> Sequence[TensorSpec]:
        """All tensors, in any order, names unique; known before any weight is read."""
        ...

    def read(self, spec: TensorSpec, xid: int = 0, rows: Rows | None = None) -> Array:
        """Matrix `xid` of a stack (0 where there is one matrix), or its rows `rows[0]:rows[1]`.

        Returns [n_row, n_per_row], C-contiguous, owned by the caller: uint16 (bits of bfloat16), float16 or float32.
        May be called from several threads.
        """
        ...
