"""Q2_0: 2.25 bits per weight. Blocks of 64 weights; value = d * (code - 1); no search, no use for an importance.

    float16 d | 16 bytes: code[4 k] | code[4 k + 1] << 2 | code[4 k + 2] << 4 | code[4 k + 3] << 6

Since d is the largest magnitude, the encoder has no use for code 3; it is for models that were trained to have it.

Source: ggml-quants.c, quantize_row_q2_0_ref, dequantize_row_q2_0.
"""

from __future__ import annotations

import numpy as np

from quantize.blocks.base import BlockFormat, Grid
from quantize.blocks.error_weights import TileGuide
from quantize.blocks.half import F32, I32, load_f16
from quantize.blocks.jit import kernel
from quantize.blocks.parts import PartFormat, store_f16
from quantize.blocks.ternary import fit_largest
from quantize.blocks.tiles import LANES, copy_rows, row
from quantize.tensors import Array, QType

QK, TYPE_SIZE = 64, 18
LEVELS = np.arange(-1, 3, dtype=np.float32)


def fit(x: Array, guide: TileGuide | None) -> Grid:
    """See `BlockFormat`."""
    return fit_largest(x, LEVELS, np.nan)


@kernel
def pack(head: Array, codes: Array, blocks: Array) -> None:
    """See `BlockFormat.pack_kernel`."""
    for t in range(len(head)):
        tile, block = codes[t], blocks[t]
        copy_rows(head[t], block[:2])
        for k in range(QK // 4):
            byte = block[2 + k]
            a, b, c, d = row(tile, 4 * k), row(tile, 4 * k + 1), row(tile, 4 * k + 2), row(tile, 4 * k + 3)
            for i in range(LANES):
                byte[i] = a[i] | b[i] << 2 | c[i] << 4 | d[i] << 6


@kernel
def unpack(blocks: Array, values: Array) -> None:
    """See `BlockFormat.decode`."""
    for b in range(len(blocks)):
        block, x = blocks[b], values[b]
        d = load_f16(block, 0)
        for k in range(QK // 4):
            byte = I32(block[2 + k])
            for i in range(4):
                x[4 * k + i] = F32(I32(I32(byte >> I32(2 * i)) & I32(3)) - I32(1)) * d


FORMAT = BlockFormat(QType.Q2_0, QK, TYPE_SIZE, fit, pack, unpack, uses_importance=False)


@kernel
def split(blocks: Array, codes: Array, scales: Array, mins: Array, factors: Array) -> None:
    """See `PartFormat`; the one scale is 1."""
    scales[:] = 1
    for b in range(len(blocks)):
        factors[b, 0] = load_f16(blocks[b], 0)
        for k in range(QK // 4):
            byte = blocks[b, 2 + k]
            for i in range(4):
                codes[b, 4 * k + i] = byte >> (2 * i) & 3


@kernel
def join(codes: Array, scales: Array, mins: Array, factors: Array, blocks: Array) -> None:
    """See `PartFormat`."""
    for b in range(len(blocks)):
        store_f16(blocks[b], 0, factors[b, 0])
        for k in range(QK // 4):
            for i in range(4):
                blocks[b, 2 + k] |= codes[b, 4 * k + i] << (2 * i)


PARTS = PartFormat(QType.Q2_0, QK, TYPE_SIZE, 1, LEVELS, 1, 1, 0, split, join)
