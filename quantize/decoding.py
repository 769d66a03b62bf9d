"""Weights out of whatever a file stores: blocks of any type that can be decoded, floats of any width.

`codec.decode` is for the types that this project writes; here the gguf library helps out, slowly, with all others.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from gguf import GGMLQuantizationType
from gguf.quants import dequantize

from quantize.blocks import can_encode
from quantize.codec import decode, to_qtype
from quantize.exceptions import DecodeError
from quantize.tensors import NUMPY_TYPES, Array, QType

__all__ = ["can_decode", "decode_stored", "to_f32"]


@cache
def can_decode(qtype: QType) -> bool:
    """Whether a type can be decoded: by our kernels where it can be encoded, too, else slowly by the gguf library."""
    if can_encode(qtype):
        return True
    try:
        weights = _dequantize(np.zeros((1, qtype.type_size), np.uint8), qtype)
    except (NotImplementedError, ValueError):
        return False
    return weights.shape == (1, qtype.block_size)


def decode_stored(blocks: Array, qtype: QType | str, n_per_row: int) -> Array:
    """Weights [n_rows, n_per_row] of stored bytes: floats as they are stored (see `NUMPY_TYPES`), blocks as float32.

    Args:
        blocks: uint8 [n_rows, bytes per row].
        qtype: the tensor type, or its name in any case.
        n_per_row: weights of one row.

    Raises:
        DecodeError: the type cannot be decoded, or the blocks are not rows of it.
    """
    qtype = to_qtype(qtype)
    if qtype in NUMPY_TYPES:
        return blocks.view(NUMPY_TYPES[qtype])
    if can_encode(qtype):
        return decode(blocks, qtype, n_per_row)
    try:
        weights = _dequantize(blocks, qtype)
    except (NotImplementedError, ValueError) as error:
        raise DecodeError("", f"blocks of type {qtype.name} cannot be decoded: {error}") from None
    if weights.shape != (len(blocks), n_per_row):
        raise DecodeError(
            "",
            f"blocks of type {qtype.name} cannot be decoded: rows of {blocks.shape[1]} bytes do not hold "
            f"{n_per_row} weights",
        )
    return weights


def _dequantize(blocks: Array, qtype: QType) -> Array:
    """By the gguf library, which raises a ValueError for a type that is newer than its version."""
    weights: Array = dequantize(blocks, GGMLQuantizationType(qtype))
    return weights


def to_f32(weights: Array) -> Array:
    """Weights as sources hand them out (float32, float16, uint16 with the bits of bfloat16) as float32, exactly.

    Float32 weights are returned as they are, not copied.
    """
    if weights.dtype == np.uint16:  # the bits of bfloat16 are the upper half of those of float32
        return np.left_shift(weights, np.uint32(16), dtype=np.uint32).view(np.float32)
    return np.asarray(weights, np.float32)
