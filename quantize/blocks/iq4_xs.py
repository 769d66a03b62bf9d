"""IQ4_XS: 4.25 bits per weight. 256 weights, eight sub-blocks of 32; value = d * (sc - 32) * TABLE[code].

    float16 d | uint16 scales_h | 4 bytes scales_l | 128 bytes: code[32 j + k] | code[32 j + k + 16] << 4

    bits 2 j and 2 j + 1 of scales_h are sc[j] >> 4; byte j of scales_l is sc[2 j] & 15 | (sc[2 j + 1] & 15) << 4.

Source: ggml-quants.c, quantize_iq4_xs, quantize_row_iq4_nl_impl, dequantize_row_iq4_xs.
"""

from __future__ import annotations

import numpy as np

from quantize.blocks.base import BlockFormat
from quantize.blocks.half import load_f16, store_f16
from quantize.blocks.iq4 import VALUES, fit, round_to_table
from quantize.blocks.jit import kernel
from quantize.blocks.lanes import LANES, ONE, ZERO, chunks, importance_lanes, nearest_code
from quantize.blocks.signed import largest_scale
from quantize.tensors import Array, QType

QK_K, N_SUB, SUB = 256, 8, 32
TYPE_SIZE = 136
SCALES_H, SCALES_L, QS = 2, 4, 8  # where they begin


def encode(weights: Array, importance: Array | None, out: Array) -> None:
    """See `BlockFormat.encode`."""
    lanes = None if importance is None else importance_lanes(importance, QK_K)
    for chunk in chunks(weights, QK_K, out, TYPE_SIZE):
        scales = fit(chunk.x, lanes, chunk.first)
        d = np.empty((len(chunk.x), LANES), np.float32)
        sc = np.empty(scales.shape, np.uint8)
        _code_scales(scales, d, sc)
        codes = np.empty(chunk.x.shape, np.uint8)
        round_to_table(chunk.x, scales, codes)
        pack(d, sc, codes, chunk.blocks)


@kernel
def _code_scales(scales: Array, d: Array, sc: Array) -> None:
    """Code the scales so that the one of largest magnitude becomes -32.

    Leaves in their place the inverses to round with, which follow from the unrounded d, not the one a reader sees.
    """
    largest = np.empty(LANES, np.float32)
    for t in range(len(d)):
        factor = d[t]
        largest_scale(scales[t], largest)
        for i in range(LANES):
            factor[i] = -largest[i] / np.float32(32)
        for j in range(N_SUB):
            row, found = scales[t, j], sc[t, j]
            for i in range(LANES):
                inverse = ONE / factor[i] if factor[i] != ZERO else ZERO
                code = nearest_code(inverse * row[i], np.float32(-32), np.float32(31))
                scale = factor[i] * code
                row[i] = ONE / scale if scale != ZERO else ZERO
                found[i] = np.uint8(np.int32(code) + np.int32(32))


@kernel
def pack(d: Array, sc: Array, codes: Array, blocks: Array) -> None:
    """Tiles of d [n_tiles, LANES], sc [n_tiles, N_SUB, LANES] and codes into blocks [n_blocks, TYPE_SIZE]."""
    for b in range(len(blocks)):
        t, i, block = b // LANES, b % LANES, blocks[b]
        tile = codes[t]
        store_f16(d[t, i], block, 0)
        for j in range(2):
            high = 0
            for k in range(4):
                high |= (sc[t, 4 * j + k, i] >> 4) << (2 * k)
            block[SCALES_H + j] = high
        for j in range(4):
            block[SCALES_L + j] = sc[t, 2 * j, i] & 15 | (sc[t, 2 * j + 1, i] & 15) << 4
        for j in range(N_SUB):
            for k in range(16):
                o = (SUB * j + k) * LANES + i
                block[QS + 16 * j + k] = tile[o] | tile[o + 16 * LANES] << 4


def decode(blocks: Array, out: Array) -> None:
    """See `BlockFormat.decode`."""
    _unpack(blocks.reshape(-1, TYPE_SIZE), out.reshape(-1, QK_K))


@kernel
def _unpack(blocks: Array, values: Array) -> None:
    for b in range(len(blocks)):
        block, x = blocks[b], values[b]
        d = load_f16(block, 0)
        for j in range(N_SUB):
            low = block[SCALES_L + j // 2] >> (4 * (j % 2)) & 15
            high = block[SCALES_H + j // 4] >> (2 * (j % 4)) & 3
            scale = d * np.float32(np.int32(low | high << 4) - np.int32(32))
            for k in range(16):
                byte = block[QS + 16 * j + k]
                x[SUB * j + k] = scale * VALUES[byte & 15]
                x[SUB * j + k + 16] = scale * VALUES[byte >> 4]


FORMAT = BlockFormat(QType.IQ4_XS, QK_K, TYPE_SIZE, encode, decode)
