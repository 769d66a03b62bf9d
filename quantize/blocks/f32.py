"""F32: the weights as they are, little-endian."""

from __future__ import annotations

import numpy as np

from quantize.blocks.base import FloatFormat
from quantize.tensors import Array, QType


def _encode(weights: Array, out: Array) -> None:
    rows = out.view("<f4")
    if weights.dtype == np.uint16:
        bits = out.view("<u4")
        bits[...] = weights
        bits <<= 16
    else:
        rows[...] = weights


def _decode(blocks: Array, out: Array) -> None:
    out[...] = blocks.view("<f4")


FORMAT = FloatFormat(QType.F32, 4, _encode, _decode)
