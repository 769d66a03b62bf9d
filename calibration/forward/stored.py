"""Matrices in the form in which their source stores them, decoded when and as far as they are wanted."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from quantize.decoding import decode_stored
from quantize.sources.model_source import ModelSource
from quantize.tensors import Array, TensorSpec

__all__ = ["StoredMatrix"]


class StoredMatrix:
    """One matrix in memory, in a few bits per weight: for matrices that are wanted again and again, or in part."""

    def __init__(self, source: ModelSource, spec: TensorSpec, xid: int = 0) -> None:
        self.spec = spec
        self.xid = xid
        self._blocks = source.read_blocks(spec, xid)

    def rows(self, first: int, last: int) -> Array:
        """The weights of some rows in a row, as `TensorSource.read` hands them out."""
        return decode_stored(self._blocks[first:last], self.spec.qtype, self.spec.n_per_row)

    def picked(self, indices: npt.NDArray[np.int64]) -> Array:
        """The weights of some rows in any order."""
        return decode_stored(self._blocks[indices], self.spec.qtype, self.spec.n_per_row)

    def whole(self) -> Array:
        """All weights."""
        return self.rows(0, self.spec.n_row)
