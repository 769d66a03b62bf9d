"""Matrices in the form in which their source stores them, decoded when and as far as they are wanted."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from quantize.decoding import decode_stored
from quantize.sources.model_source import ModelSource
from quantize.tensors import Array, TensorSpec

__all__ = ["ALL", "Matrix", "Picked", "to_tensor"]

Picked = slice | npt.NDArray[np.int64]
"""Rows of a matrix: a range, or any of them in any order."""

ALL = slice(None)


class Matrix:
    """One matrix in memory, in the bytes in which its source stores it, decoded when and as far as it is wanted."""

    def __init__(self, spec: TensorSpec, xid: int, blocks: Array) -> None:
        """The matrix `xid` of a tensor, from its bytes uint8 [n_row, spec.row_bytes]."""
        self.spec, self.xid = spec, xid
        self._blocks = blocks

    @classmethod
    def read(cls, source: ModelSource, spec: TensorSpec, xid: int = 0) -> Matrix:
        """Read the matrix `xid` of a tensor; raises as the source's `read_blocks`."""
        return cls(spec, xid, source.read_blocks(spec, xid))

    def rows(self, first: int, last: int) -> Array:
        """The weights of the rows `first` to `last` - 1, as `TensorSource.read` hands them out."""
        return self._decoded(slice(first, last))

    def picked(self, indices: npt.NDArray[np.int64]) -> Array:
        """The weights of some rows in any order."""
        return self._decoded(indices)

    def whole(self) -> Array:
        """All weights."""
        return self._decoded(slice(None))

    def tensor(self, device: str, dtype: torch.dtype | None = None, rows: Picked = ALL) -> Tensor:
        """The weights of some rows on a device, in `dtype` or as they are stored."""
        return to_tensor(self._decoded(rows), device, dtype)

    def to_host(self) -> None:
        """Move the bytes to the memory of the host, if they are elsewhere."""

    def drop(self) -> None:
        """Free the bytes; `spec` and `xid` stay."""
        self._blocks = self._blocks[:0].copy()  # a view would keep the whole array

    def _stored(self, rows: Picked) -> Array:
        return self._blocks[rows]

    def _decoded(self, rows: Picked) -> Array:
        return decode_stored(self._stored(rows), self.spec.qtype, self.spec.n_per_row)


def to_tensor(array: Array, device: str = "cpu", dtype: torch.dtype | None = None) -> Tensor:
    """Weights as a source reads them (uint16 holds bfloat16), in `dtype` or as they are; shares memory if it can."""
    if not array.flags.writeable:
        array = array.copy()  # torch warns of tensors that could be written although their memory must not be
    if array.dtype.kind == "u":
        tensor = torch.from_numpy(array.view("<i2")).view(torch.bfloat16)
    else:
        tensor = torch.from_numpy(array)
    return tensor.to(device, dtype)
