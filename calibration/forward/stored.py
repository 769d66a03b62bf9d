"""Matrices in the form in which their source stores them, decoded when and as far as they are wanted."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from quantize.decoding import can_decode, decode_stored
from quantize.tensors import Array, Rows, TensorSource, TensorSpec

__all__ = ["BlockSource", "StoredMatrix", "can_decode", "decode_stored"]


@runtime_checkable
class BlockSource(TensorSource, Protocol):
    """A source that hands out its bytes, too."""

    def read_blocks(self, spec: TensorSpec, xid: int, rows: Rows) -> Array:
        """The stored bytes of rows of one expert: uint8 [n_rows, bytes per row]."""
        ...


class StoredMatrix:
    """One matrix in memory, in a few bits per weight: for matrices that are wanted again and again, or in part."""

    def __init__(self, source: TensorSource, spec: TensorSpec, xid: int = 0) -> None:
        self.spec = spec
        self.xid = xid
        self._blocks: Array | None = None
        if isinstance(source, BlockSource):
            self._blocks = source.read_blocks(spec, xid, (0, spec.n_row))
        else:
            self._weights = source.read(spec, xid)

    def rows(self, first: int, last: int) -> Array:
        """The weights of some rows in a row, as `TensorSource.read` hands them out."""
        if self._blocks is None:
            return self._weights[first:last]
        return decode_stored(self._blocks[first:last], self.spec.qtype, self.spec.n_per_row)

    def picked(self, indices: npt.NDArray[np.int64]) -> Array:
        """The weights of some rows in any order."""
        if self._blocks is None:
            return self._weights[indices]
        return decode_stored(self._blocks[indices], self.spec.qtype, self.spec.n_per_row)

    def whole(self) -> Array:
        """All weights."""
        return self.rows(0, self.spec.n_row)
