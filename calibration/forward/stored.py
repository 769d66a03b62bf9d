"""Matrices in the form in which their source stores them, decoded when and as far as they are wanted."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from gguf.constants import GGML_QUANT_SIZES
from gguf.quants import dequantize

from quantize.blocks import MODULES
from quantize.codec import decode
from quantize.sources.model_source import ModelSource
from quantize.tensors import NUMPY_TYPES, Array, QType, TensorSpec

__all__ = ["StoredMatrix", "can_decode", "decode_stored"]


def decode_stored(blocks: Array, qtype: QType, n_per_row: int) -> Array:
    """Weights [n_rows, n_per_row] of stored bytes: a stored float as it is, a block type as float32.

    Types that this project does not write are decoded by the gguf library, which is slower.
    """
    if qtype in NUMPY_TYPES:
        return blocks.view(NUMPY_TYPES[qtype])
    if qtype in MODULES:
        return decode(blocks, qtype, n_per_row)
    weights: Array = dequantize(blocks, qtype)
    return weights


def can_decode(qtype: QType) -> bool | None:
    """Whether a type is decoded here: by our kernels (True), slowly by the gguf library (False), or not (None)."""
    if qtype in NUMPY_TYPES or qtype in MODULES:
        return True
    block_size, type_size = GGML_QUANT_SIZES[qtype]
    try:
        found = dequantize(np.zeros((1, type_size), np.uint8), qtype)
    except NotImplementedError:
        return None
    return False if found.shape == (1, block_size) else None


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
