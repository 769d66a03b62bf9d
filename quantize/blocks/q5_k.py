"""Q5_K: 5.5 bits per weight. Super-blocks of 256 weights, eight sub-blocks of 32; value = (d * sc) * code - (dmin * m).

    float16 d | float16 dmin | 12 bytes: 6-bit sc[8], m[8] | 32 bytes: high bits | 128 bytes: low bits

    low byte l of 32, weights 64 c .. 64 c + 63:   code[64 c + l] & 15 | (code[64 c + 32 + l] & 15) << 4
    high byte l: bit 2 c is bit 4 of code[64 c + l], bit 2 c + 1 that of code[64 c + 32 + l]

Source: ggml-quants.c, quantize_row_q5_K_ref, quantize_row_q5_K_impl, dequantize_row_q5_K.
"""

from __future__ import annotations

import numpy as np

from quantize.blocks.affine import codes_to_round, plain_search, weighted_search
from quantize.blocks.base import BlockFormat
from quantize.blocks.jit import kernel
from quantize.blocks.k4_scales import HEAD, N_SUB, QK_K, SUB, decoded_scales, fit
from quantize.blocks.lanes import LANES, chunks, importance_lanes
from quantize.blocks.rounding import nearest
from quantize.tensors import Array, QType

TYPE_SIZE = 176
NMAX = 31
LOW = HEAD + 32  # where the low bits begin


def encode(weights: Array, importance: Array | None, out: Array) -> None:
    """See `BlockFormat.encode`."""
    lanes = None if importance is None else importance_lanes(importance, QK_K)
    search = plain_search(NMAX, -0.5, 0.1, 15) if importance is None else weighted_search(NMAX)
    for chunk in chunks(weights, QK_K, out, TYPE_SIZE):
        grids, head = fit(chunk, search, lanes, clip=True)
        codes = codes_to_round(chunk.x, search, grids)
        nearest(chunk.x, search.nmax, grids.scales, grids.mins, codes)
        pack(head, codes, chunk.blocks)


@kernel
def pack(head: Array, codes: Array, blocks: Array) -> None:
    """Tiles of heads [n_tiles, HEAD, LANES] and codes [n_tiles, QK_K * LANES] into blocks [n_blocks, TYPE_SIZE]."""
    for b in range(len(blocks)):
        t, i = b // LANES, b % LANES
        block, tile = blocks[b], codes[t]
        for k in range(HEAD):
            block[k] = head[t, k, i]
        for k in range(SUB):
            high = 0
            for c in range(N_SUB // 2):
                first = tile[(64 * c + k) * LANES + i]
                second = tile[(64 * c + 32 + k) * LANES + i]
                block[LOW + 32 * c + k] = first & 15 | (second & 15) << 4
                high |= (first >> 4 | (second >> 4) << 1) << 2 * c
            block[HEAD + k] = high


@kernel
def decode(blocks: Array, out: Array) -> None:
    """See `BlockFormat.decode`."""
    raw, values = blocks.reshape(-1, TYPE_SIZE), out.reshape(-1, QK_K)
    for b in range(len(raw)):
        block, x = raw[b], values[b]
        for j in range(N_SUB):
            scale, minimum = decoded_scales(j, block)
            shift = 4 * (j % 2)
            low, high = block[LOW + 32 * (j // 2) :], block[HEAD:LOW]
            for k in range(SUB):
                code = low[k] >> shift & 15 | (high[k] >> j & 1) << 4
                x[SUB * j + k] = scale * np.float32(code) - minimum


FORMAT = BlockFormat(QType.Q5_K, QK_K, TYPE_SIZE, encode, decode)
