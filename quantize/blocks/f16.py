"""F16: each weight rounded to the nearest half (ggml.c `ggml_fp32_to_fp16_row`)."""

from __future__ import annotations

import numpy as np

from quantize.blocks.base import FloatFormat
from quantize.blocks.half import as_f32, f32_to_f16_bits
from quantize.blocks.jit import kernel
from quantize.tensors import Array, QType


@kernel
def _pack(weights: Array, out: Array) -> None:
    """Weights [n] to the bits of halves, uint16 [n]."""
    for i in range(weights.size):
        out[i] = f32_to_f16_bits(as_f32(weights[i]))


def _encode(weights: Array, out: Array) -> None:
    _pack(weights.reshape(-1), out.view("<u2").reshape(-1))


def _decode(blocks: Array, out: Array) -> None:
    with np.errstate(invalid="ignore"):  # a signalling NaN
        out[...] = blocks.view("<f2")


FORMAT = FloatFormat(QType.F16, 2, _encode, _decode)
