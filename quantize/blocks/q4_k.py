"""Q4_K: 4.5 bits per weight. Super-blocks of 256 weights, eight sub-blocks of 32; value = (d * sc) * code - (dmin * m).

    float16 d | float16 dmin | 12 bytes: 6-bit sc[8], m[8] | 128 bytes: codes

    byte l of 32, weights 64 c .. 64 c + 63:   code[64 c + l] | code[64 c + 32 + l] << 4

Source: ggml-quants.c, quantize_row_q4_K_ref, quantize_row_q4_K_impl, dequantize_row_q4_K.
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

TYPE_SIZE = 144
LEVELS = np.arange(16, dtype=np.float32)
PLAIN, WEIGHTED = plain_search(15, -1.0, 0.1, 20), weighted_search(15)


def fit(x: Array, guide: TileGuide | None) -> Grid:
    """See `BlockFormat`."""
    return fit_k4(x, guide, PLAIN if guide is None else WEIGHTED, LEVELS, clip=guide is None)


@kernel
def pack(head: Array, codes: Array, blocks: Array) -> None:
    """See `BlockFormat.pack_kernel`."""
    for t in range(len(head)):
        tile, block = codes[t], blocks[t]
        copy_rows(head[t], block[:HEAD])
        for c in range(N_SUB // 2):
            for k in range(SUB):
                low, high, byte = row(tile, 64 * c + k), row(tile, 64 * c + 32 + k), block[HEAD + 32 * c + k]
                for i in range(LANES):
                    byte[i] = low[i] | high[i] << 4


@kernel
def unpack(blocks: Array, values: Array) -> None:
    """See `BlockFormat.decode`."""
    for b in range(len(blocks)):
        block, x = blocks[b], values[b]
        for j in range(N_SUB):
            scale, minimum = decoded_scales(j, block)
            shift = 4 * (j % 2)
            for k in range(SUB):
                code = block[HEAD + 32 * (j // 2) + k] >> shift & 15
                x[SUB * j + k] = scale * np.float32(code) - minimum


FORMAT = BlockFormat(QType.Q4_K, QK_K, TYPE_SIZE, fit, pack, unpack)


@kernel
def split(blocks: Array, codes: Array, scales: Array, mins: Array, factors: Array) -> None:
    """See `PartFormat`."""
    for b in range(len(blocks)):
        split_head(blocks[b], scales[b], mins[b], factors[b])
        for c in range(N_SUB // 2):
            for k in range(SUB):
                byte = blocks[b, HEAD + SUB * c + k]
                codes[b, 64 * c + k], codes[b, 64 * c + SUB + k] = byte & 15, byte >> 4


@kernel
def join(codes: Array, scales: Array, mins: Array, factors: Array, blocks: Array) -> None:
    """See `PartFormat`."""
    for b in range(len(blocks)):
        join_head(scales[b], mins[b], factors[b], blocks[b])
        for c in range(N_SUB // 2):
            for k in range(SUB):
                blocks[b, HEAD + SUB * c + k] = codes[b, 64 * c + k] | codes[b, 64 * c + SUB + k] << 4


PARTS = PartFormat(QType.Q4_K, QK_K, TYPE_SIZE, N_SUB, LEVELS, 0, 63, 63, split, join)
