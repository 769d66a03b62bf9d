"""Q4_K: 4.5 bits per weight. Super-blocks of 256 weights, eight sub-blocks of 32; value = (d * sc) * code - (dmin * m).

    float16 d | float16 dmin | 12 bytes: 6-bit sc[8], m[8] | 128 bytes: codes

    byte l of 32, weights 64 c .. 64 c + 63:   code[64 c + l] | code[64 c + 32 + l] << 4

Source: ggml-quants.c, quantize_row_q4_K_ref, quantize_row_q4_K_impl, dequantize_row_q4_K.
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

TYPE_SIZE = 144
NMAX = 15


def encode(weights: Array, importance: Array | None, out: Array) -> None:
    """See `BlockFormat.encode`."""
    lanes = None if importance is None else importance_lanes(importance, QK_K)
    search = plain_search(NMAX, -1.0, 0.1, 20) if importance is None else weighted_search(NMAX)
    for chunk in chunks(weights, QK_K, out, TYPE_SIZE):
        grids, head = fit(chunk, search, lanes, clip=importance is None)
        codes = codes_to_round(chunk.x, search, grids)
        nearest(chunk.x, search.nmax, grids.scales, grids.mins, codes)
        pack(head, codes, chunk.blocks)


@kernel
def pack(head: Array, codes: Array, blocks: Array) -> None:
    """Tiles of heads [n_tiles, HEAD, LANES] and codes [n_tiles, QK_K * LANES] into blocks [n_blocks, TYPE_SIZE]."""
    for b in range(len(blocks)):
        t, i = b // LANES, b % LANES
        block = blocks[b]
        for k in range(HEAD):
            block[k] = head[t, k, i]
        for c in range(N_SUB // 2):
            for k in range(SUB):
                o = (64 * c + k) * LANES + i
                block[HEAD + 32 * c + k] = codes[t, o] | codes[t, o + SUB * LANES] << 4


@kernel
def decode(blocks: Array, out: Array) -> None:
    """See `BlockFormat.decode`."""
    raw, values = blocks.reshape(-1, TYPE_SIZE), out.reshape(-1, QK_K)
    for b in range(len(raw)):
        block, x = raw[b], values[b]
        for j in range(N_SUB):
            scale, minimum = decoded_scales(j, block)
            shift = 4 * (j % 2)
            for k in range(SUB):
                code = block[HEAD + 32 * (j // 2) + k] >> shift & 15
                x[SUB * j + k] = scale * np.float32(code) - minimum


FORMAT = BlockFormat(QType.Q4_K, QK_K, TYPE_SIZE, encode, decode)
