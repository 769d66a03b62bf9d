"""Matrices in the form in which their source stores them, decoded when and as far as they are wanted."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch
from gguf.constants import GGML_QUANT_SIZES
from gguf.quants import dequantize
from torch import Tensor

from quantize.blocks import MODULES
from quantize.codec import decode
from quantize.tensors import NUMPY_TYPES, Array, QType, Rows, TensorSource, TensorSpec

__all__ = ["BlockSource", "Matrix", "can_decode", "decode_stored", "to_tensor"]


@runtime_checkable
class BlockSource(TensorSource, Protocol):
    """A source that hands out its bytes, too."""

    def read_blocks(self, spec: TensorSpec, xid: int, rows: Rows) -> Array:
        """The stored bytes of rows of one expert: uint8 [n_rows, bytes per row]."""
        ...


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


class Matrix:
    """One matrix in memory, in the bytes in which its source stores it, decoded when and as far as it is wanted."""

    def __init__(self, source: TensorSource, spec: TensorSpec, xid: int = 0) -> None:
        """Read the matrix `xid` of a tensor."""
        self.spec, self.xid = spec, xid
        self._blocks = read_stored(source, spec, xid)

    def rows(self, first: int, last: int) -> Array:
        """The weights of the rows `first` to `last` - 1, as `TensorSource.read` hands them out."""
        return self._decoded(self._blocks[first:last])

    def picked(self, indices: npt.NDArray[np.int64]) -> Array:
        """The weights of some rows in any order."""
        return self._decoded(self._blocks[indices])

    def whole(self) -> Array:
        """All weights."""
        return self._decoded(self._blocks)

    def drop(self) -> None:
        """Free the bytes; `spec` and `xid` stay."""
        self._blocks = self._blocks[:0]

    def _decoded(self, blocks: Array) -> Array:
        return decode_stored(blocks, self.spec.qtype, self.spec.n_per_row)


def read_stored(source: TensorSource, spec: TensorSpec, xid: int) -> Array:
    """The bytes of a matrix as its source stores it: uint8 [n_row, bytes per row]."""
    if isinstance(source, BlockSource):
        return source.read_blocks(spec, xid, (0, spec.n_row))
    return np.ascontiguousarray(source.read(spec, xid)).view(np.uint8)


def to_tensor(array: Array, device: str = "cpu", dtype: torch.dtype | None = None) -> Tensor:
    """Weights as a source reads them (uint16 holds bfloat16), in `dtype` or as they are; shares memory if it can."""
    if not array.flags.writeable:
        array = array.copy()  # torch warns of tensors that could be written although their memory must not be
    if array.dtype.kind == "u":
        tensor = torch.from_numpy(array.view("<i2")).view(torch.bfloat16)
    else:
        tensor = torch.from_numpy(array)
    return tensor.to(device, dtype)
