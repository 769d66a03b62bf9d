"""IQ4_XS: 4.25 bits per weight. 256 weights, eight sub-blocks of 32; value = d * (sc - 32) * TABLE[code].

    float16 d | uint16 scales_h | 4 bytes scales_l | 128 bytes: code[32 j + k] | code[32 j + k + 16] << 4

    bits 2 j and 2 j + 1 of scales_h are sc[j] >> 4; byte j of scales_l is sc[2 j] & 15 | (sc[2 j + 1] & 15) << 4.

Source: ggml-quants.c, quantize_iq4_xs, quantize_row_iq4_nl_impl, dequantize_row_iq4_xs.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from quantize.blocks.base import BlockFormat, Grid
from quantize.blocks.error_weights import TileGuide
from quantize.blocks.half import load_f16
from quantize.blocks.iq4 import VALUES, fit_scales, round_to_table
from quantize.blocks.jit import kernel
from quantize.blocks.lanes import ONE, ZERO, nearest_code
from quantize.blocks.parts import PartFormat, store_f16
from quantize.blocks.signed import largest_scale
from quantize.blocks.tiles import LANES, copy_rows, row, store_halves
from quantize.tensors import Array, QType

QK_K, N_SUB, SUB = 256, 8, 32
TYPE_SIZE = 136
SCALES_H, SCALES_L, QS = 2, 4, 8  # where they begin


def fit(x: Array, guide: TileGuide | None) -> Grid:
    """See `BlockFormat`."""
    scales = fit_scales(x, guide)
    inverses, sc = np.empty_like(scales), np.empty(scales.shape, np.uint8)
    d, head = np.empty((len(x), LANES), np.float32), np.empty((len(x), QS, LANES), np.uint8)
    _code_scales(scales, d, sc, inverses)
    store_halves(d, head, 0)
    _pack_scales(d, sc, head, scales)
    return Grid(head, VALUES, scales, None, partial(round_to_table, inverses=inverses))


@kernel
def _code_scales(scales: Array, d: Array, sc: Array, inverses: Array) -> None:
    """Code the scales so that the scale of largest magnitude becomes -32.

    The inverses to round with follow from the unrounded d, not from the d that a reader will see.
    """
    largest = np.empty(LANES, np.float32)
    for t in range(len(d)):
        factor = d[t]
        largest_scale(scales[t], largest)
        for i in range(LANES):
            factor[i] = -largest[i] / np.float32(32)
        for j in range(N_SUB):
            values, coded, inverses_j = scales[t, j], sc[t, j], inverses[t, j]
            for i in range(LANES):
                inverse = ONE / factor[i] if factor[i] != ZERO else ZERO
                code = nearest_code(inverse * values[i], np.float32(-32), np.float32(31))
                scale = factor[i] * code
                inverses_j[i] = ONE / scale if scale != ZERO else ZERO
                coded[i] = np.uint8(np.int32(code) + np.int32(32))


@kernel
def _pack_scales(d: Array, sc: Array, head: Array, scales: Array) -> None:
    """Write sc, and leave the scales that a reader will see."""
    for t in range(len(head)):
        for i in range(LANES):
            for j in range(2):
                high = 0
                for k in range(4):
                    high |= (sc[t, 4 * j + k, i] >> 4) << (2 * k)
                head[t, SCALES_H + j, i] = high
            for j in range(4):
                head[t, SCALES_L + j, i] = sc[t, 2 * j, i] & 15 | (sc[t, 2 * j + 1, i] & 15) << 4
            for j in range(N_SUB):
                scales[t, j, i] = d[t, i] * np.float32(np.int32(sc[t, j, i]) - np.int32(32))


@kernel
def pack(head: Array, codes: Array, blocks: Array) -> None:
    """See `BlockFormat.pack_kernel`."""
    for t in range(len(head)):
        tile, block = codes[t], blocks[t]
        copy_rows(head[t], block[:QS])
        for j in range(N_SUB):
            for k in range(16):
                low, high, byte = row(tile, SUB * j + k), row(tile, SUB * j + k + 16), block[QS + 16 * j + k]
                for i in range(LANES):
                    byte[i] = low[i] | high[i] << 4


@kernel
def unpack(blocks: Array, values: Array) -> None:
    """See `BlockFormat.decode`."""
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


FORMAT = BlockFormat(QType.IQ4_XS, QK_K, TYPE_SIZE, fit, pack, unpack)


@kernel
def split(blocks: Array, codes: Array, scales: Array, mins: Array, factors: Array) -> None:
    """See `PartFormat`."""
    for b in range(len(blocks)):
        block = blocks[b]
        factors[b, 0] = load_f16(block, 0)
        for j in range(N_SUB):
            low = block[SCALES_L + j // 2] >> (4 * (j % 2)) & 15
            high = block[SCALES_H + j // 4] >> (2 * (j % 4)) & 3
            scales[b, j] = int(low | high << 4) - 32
            for k in range(16):
                byte = block[QS + 16 * j + k]
                codes[b, SUB * j + k], codes[b, SUB * j + k + 16] = byte & 15, byte >> 4


@kernel
def join(codes: Array, scales: Array, mins: Array, factors: Array, blocks: Array) -> None:
    """See `PartFormat`."""
    for b in range(len(blocks)):
        block = blocks[b]
        store_f16(block, 0, factors[b, 0])
        for j in range(N_SUB):
            sc = int(scales[b, j]) + 32
            block[SCALES_L + j // 2] |= (sc & 15) << (4 * (j % 2))
            block[SCALES_H + j // 4] |= (sc >> 4) << (2 * (j % 4))
            for k in range(16):
                block[QS + 16 * j + k] = codes[b, SUB * j + k] | codes[b, SUB * j + k + 16] << 4


PARTS = PartFormat(QType.IQ4_XS, QK_K, TYPE_SIZE, N_SUB, VALUES, -32, 31, 0, split, join)
