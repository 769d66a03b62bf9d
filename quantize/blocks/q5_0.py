"""Q5_0: 5.5 bits per weight. Blocks of 32 weights; value = d * (code - 16).

    float16 d | uint32 qh: bit k is bit 4 of code[k] | 16 bytes: code[k] & 15 | (code[k + 16] & 15) << 4

Source: ggml-quants.c, quantize_row_q5_0_ref, quantize_row_q5_0_impl, dequantize_row_q5_0.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from quantize.blocks.base import BlockFormat
from quantize.blocks.half import load_f16
from quantize.blocks.jit import kernel
from quantize.blocks.legacy import fit_scale
from quantize.blocks.nibbles import QK, codes_of_5, pack_5
from quantize.blocks.parts import PartFormat, store_f16
from quantize.tensors import Array, QType

TYPE_SIZE = 22
LEVELS = np.arange(-16, 16, dtype=np.float32)


@kernel
def unpack(blocks: Array, values: Array) -> None:
    """See `BlockFormat.decode`."""
    for b in range(len(blocks)):
        block, x = blocks[b], values[b]
        d = load_f16(block, 0)
        for k in range(QK // 2):
            low, high = codes_of_5(block, 2, k)
            x[k] = np.float32(np.int32(low) - np.int32(16)) * d
            x[k + 16] = np.float32(np.int32(high) - np.int32(16)) * d


FORMAT = BlockFormat(
    QType.Q5_0, QK, TYPE_SIZE, partial(fit_scale, levels=LEVELS), pack_5, unpack, weighs_rows=True
)


@kernel
def split(blocks: Array, codes: Array, scales: Array, mins: Array, factors: Array) -> None:
    """See `PartFormat`; the one scale is 1."""
    scales[:] = 1
    for b in range(len(blocks)):
        factors[b, 0] = load_f16(blocks[b], 0)
        for k in range(QK // 2):
            low, high = codes_of_5(blocks[b], 2, k)
            codes[b, k], codes[b, k + 16] = low, high


@kernel
def join(codes: Array, scales: Array, mins: Array, factors: Array, blocks: Array) -> None:
    """See `PartFormat`."""
    for b in range(len(blocks)):
        block = blocks[b]
        store_f16(block, 0, factors[b, 0])
        for k in range(QK):
            block[2 + k // 8] |= codes[b, k] >> 4 << k % 8
        for k in range(QK // 2):
            block[6 + k] = codes[b, k] & 15 | (codes[b, k + 16] & 15) << 4


PARTS = PartFormat(QType.Q5_0, QK, TYPE_SIZE, 1, LEVELS, 1, 1, 0, split, join)
