"""Q5_K: 5.5 bits per weight. Super-blocks of 256 weights, eight sub-blocks of 32; value = (d * sc) * code - (dmin * m).

    float16 d | float16 dmin | 12 bytes: 6-bit sc[8], m[8] | 32 bytes: high bits | 128 bytes: low bits

    low byte l of 32, weights 64 c .. 64 c + 63:   code[64 c + l] & 15 | (code[64 c + 32 + l] & 15) << 4
    high byte l: bit 2 c is bit 4 of code[64 c + l], bit 2 c + 1 that of code[64 c + 32 + l]

Source: ggml-quants.c, quantize_row_q5_K_ref, quantize_row_q5_K_impl, dequantize_row_q5_K.
"""

from __future__ import annotations

import numpy as np

from quantize.blocks.affine import plain_search, weighted_search
from quantize.blocks.base import BlockFormat, Grid
from quantize.blocks.error_weights import TileGuide
from quantize.blocks.jit import kernel
from quantize.blocks.k4_scales import HEAD, N_SUB, QK_K, SUB, decoded_scales, fit_k4, join_head, split_head
from quantize.blocks.parts import PartFormat
from quantize.blocks.tiles import LANES, copy_rows, row
from quantize.tensors import Array, QType

TYPE_SIZE = 176
LOW = HEAD + 32  # where the low bits begin
LEVELS = np.arange(32, dtype=np.float32)
PLAIN, WEIGHTED = plain_search(31, -0.5, 0.1, 15), weighted_search(31)


def fit(x: Array, guide: TileGuide | None) -> Grid:
    """See `BlockFormat`."""
    return fit_k4(x, guide, PLAIN if guide is None else WEIGHTED, LEVELS, clip=True)


@kernel
def pack(head: Array, codes: Array, blocks: Array) -> None:
    """See `BlockFormat.pack_kernel`."""
    for t in range(len(head)):
        tile, block = codes[t], blocks[t]
        copy_rows(head[t], block[:HEAD])
        block[HEAD:LOW] = 0
        for c in range(N_SUB // 2):
            for k in range(SUB):
                first, second = row(tile, 64 * c + k), row(tile, 64 * c + 32 + k)
                low, high = block[LOW + 32 * c + k], block[HEAD + k]
                for i in range(LANES):
                    low[i] = first[i] & 15 | second[i] << 4
                    high[i] |= (first[i] >> 4 | second[i] >> 4 << 1) << 2 * c


@kernel
def unpack(blocks: Array, values: Array) -> None:
    """See `BlockFormat.decode`."""
    for b in range(len(blocks)):
        block, x = blocks[b], values[b]
        for j in range(N_SUB):
            scale, minimum = decoded_scales(j, block)
            shift = 4 * (j % 2)
            low, high = block[LOW + 32 * (j // 2) :], block[HEAD:LOW]
            for k in range(SUB):
                code = low[k] >> shift & 15 | (high[k] >> j & 1) << 4
                x[SUB * j + k] = scale * np.float32(code) - minimum


FORMAT = BlockFormat(QType.Q5_K, QK_K, TYPE_SIZE, fit, pack, unpack)


@kernel
def split(blocks: Array, codes: Array, scales: Array, mins: Array, factors: Array) -> None:
    """See `PartFormat`."""
    for b in range(len(blocks)):
        block = blocks[b]
        split_head(block, scales[b], mins[b], factors[b])
        for j in range(N_SUB):
            for k in range(SUB):
                low = block[LOW + SUB * (j // 2) + k] >> (4 * (j % 2)) & 15
                codes[b, SUB * j + k] = low | (block[HEAD + k] >> j & 1) << 4


@kernel
def join(codes: Array, scales: Array, mins: Array, factors: Array, blocks: Array) -> None:
    """See `PartFormat`."""
    for b in range(len(blocks)):
        block = blocks[b]
        join_head(scales[b], mins[b], factors[b], block)
        for j in range(N_SUB):
            for k in range(SUB):
                code = codes[b, SUB * j + k]
                block[LOW + SUB * (j // 2) + k] |= (code & 15) << (4 * (j % 2))
                block[HEAD + k] |= (code >> 4) << j


PARTS = PartFormat(QType.Q5_K, QK_K, TYPE_SIZE, N_SUB, LEVELS, 0, 63, 63, split, join)
