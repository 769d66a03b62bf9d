"""BF16: each weight rounded to the nearest bfloat16 (ggml.c `ggml_fp32_to_bf16_row_ref`)."""

from __future__ import annotations

import numpy as np

from quantize.blocks.base import FloatFormat
from quantize.blocks.half import f32_to_bf16_bits
from quantize.blocks.jit import kernel
from quantize.tensors import Array, QType


@kernel
def _pack(weights: Array, out: Array) -> None:
    """Float32 weights [n] to the bits of bfloat16, uint16 [n]."""
    for i in range(weights.size):
        out[i] = f32_to_bf16_bits(weights[i])


def _encode(weights: Array, out: Array) -> None:
    if weights.dtype == np.uint16:
        out.view("<u2")[...] = weights
    else:
        _pack(weights.reshape(-1), out.view("<u2").reshape(-1))


def _decode(blocks: Array, out: Array) -> None:
    bits = out.view(np.uint32)
    bits[...] = blocks.view("<u2")
    bits <<= 16


FORMAT = FloatFormat(QType.BF16, 2, _encode, _decode)
