"""What a tensor is, and who can read one: the two nouns on which everything else stands."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from gguf import GGMLQuantizationType as QType

from quantize.hparams import Hparams

__all__ = ["Array", "QType", "Rows", "TensorSource", "TensorSpec"]

Array = npt.NDArray[Any]
Rows = tuple[int, int]  # a half-open range of rows of one matrix

NUMPY_TYPES: dict[QType, np.dtype[Any]] = {
    QType.F32: np.dtype("<f4"),
    QType.F16: np.dtype("<f2"),
    QType.BF16: np.dtype("<u2"),
}
"""How `TensorSource.read` hands out each stored float type; uint16 always means the bits of bfloat16."""


@dataclass(frozen=True)
class TensorSpec:
    """One tensor as GGUF knows it; it holds no data and no Hugging Face name.

    `shape` is (n_expert, n_out, n_in) for stacked experts, (n_out, n_in) for a matrix, (n,) for a vector: the NumPy
    order, the reverse of ggml's `ne`. `qtype` is the type in which the source stores it.
    """

    name: str
    shape: tuple[int, ...]
    qtype: QType

    @property
    def n_expert(self) -> int:
        """Number of matrices: experts of a 3-D tensor, else 1."""
        return self.shape[0] if len(self.shape) == 3 else 1

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


class TensorSource(Protocol):
    """Whoever can hand out tensors: a checkpoint, a finished GGUF, a round trip through an encoder."""

    @property
    def hparams(self) -> Hparams:
        """The model's dimensions and switches."""
        ...

    def specs(self) -> Sequence[TensorSpec]:
        """All tensors, in any order, names unique; known before any weight is read."""
        ...

    def read(self, spec: TensorSpec, xid: int = 0, rows: Rows | None = None) -> Array:
        """The matrix of expert `xid` (0 where there are none), or its rows `rows[0]:rows[1]`.

        Returns [n_row, n_per_row], C-contiguous, owned by the caller: uint16 (bits of bfloat16), float16 or float32.
        May be called from several threads.
        """
        ...
