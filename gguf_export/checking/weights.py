"""Stored bytes, and weights of any float type, become float32."""

from __future__ import annotations

import numpy as np
from gguf.quants import dequantize

from quantize import codec
from quantize.blocks import MODULES
from quantize.tensors import NUMPY_TYPES, Array, QType

__all__ = ["can_decode", "can_encode", "decode_stored", "to_f32"]


def can_encode(qtype: QType) -> bool:
    """Whether blocks of this type can be made here."""
    return qtype in MODULES


def can_decode(qtype: QType) -> bool:
    """Whether blocks of this type can be decoded here."""
    return can_encode(qtype) or qtype.name.startswith(("IQ", "TQ", "NVFP4"))


def decode_stored(blocks: Array, qtype: QType, n_per_row: int) -> Array:
    """The weights that stored bytes stand for: uint8 [n_rows, row bytes] -> [n_rows, n_per_row].

    Floats are handed out as they are stored, block types as float32.
    """
    if qtype in NUMPY_TYPES:
        return blocks.view(NUMPY_TYPES[qtype])
    if can_encode(qtype):
        return codec.decode(blocks, qtype, n_per_row)
    weights: Array = dequantize(blocks, qtype)
    return weights


def to_f32(weights: Array) -> Array:
    """Weights as a source hands them out (float32, float16, bits of bfloat16) as float32 of the same shape."""
    if weights.dtype == np.float32:
        return weights
    widened: Array = codec.encode(weights, QType.F32).view(np.float32)
    return widened
