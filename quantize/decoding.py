"""Weights out of whatever a file stores: blocks of any type that can be decoded, floats of any width."""

from __future__ import annotations

import numpy as np

from quantize.blocks import can_encode
from quantize.codec import decode, to_qtype
from quantize.tensors import NUMPY_TYPES, Array, QType

__all__ = ["can_decode", "decode_stored", "to_f32"]


def can_decode(qtype: QType) -> bool:
    """Whether blocks of a type can be decoded: those that can be written; not integers, nor types of activations."""
    return can_encode(qtype)


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
    return blocks.view(NUMPY_TYPES[qtype]) if qtype in NUMPY_TYPES else decode(blocks, qtype, n_per_row)


def to_f32(weights: Array) -> Array:
    """Weights as sources hand them out (float32, float16, uint16 with the bits of bfloat16) as float32, exactly.

    Float32 weights are returned as they are, not copied.
    """
    if weights.dtype == np.uint16:  # the bits of bfloat16 are the upper half of those of float32
        return np.left_shift(weights, np.uint32(16), dtype=np.uint32).view(np.float32)
    return np.asarray(weights, np.float32)
