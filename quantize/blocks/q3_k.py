"""Q3_K: 3.4375 bits per weight. 256 weights, sixteen sub-blocks of 16; value = d * (sc - 32) * (code - 4).

    32 bytes hmask | 64 bytes qs | 12 bytes scales | float16 d

    hmask[k]            bit c is bit 2 of code[32 c + k]
    qs[32 h + k]        the two low bits of code[128 h + k], .. + 32, .. + 64, .. + 96, from the lowest bits on (k < 32)
    scales[j]           sc[j] & 15 | (sc[j + 8] & 15) << 4          (j < 8)
    scales[8 + j]       sc[j] >> 4, sc[j + 4] >> 4, sc[j + 8] >> 4, sc[j + 12] >> 4, from the lowest bits on (j < 4)

Source: ggml-quants.c, quantize_row_q3_K_ref, quantize_row_q3_K_impl, dequantize_row_q3_K.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from quantize.blocks.base import BlockFormat, Grid
from quantize.blocks.error_weights import TileGuide, mean_squares
from quantize.blocks.half import load_f16
from quantize.blocks.jit import kernel
from quantize.blocks.lanes import ONE, ZERO, nearest_code, nearest_int
from quantize.blocks.parts import PartFormat, store_f16
from quantize.blocks.q3 import make_q3
from quantize.blocks.qx import BEST_ISCALE, EPS, LARGEST, N_STATE, SCALE, find_largest, make_qx
from quantize.blocks.signed import fit_signed, largest_scale, round_anew, search_codes
from quantize.blocks.tiles import LANES, aligned_floats, copy_rows, row, store_halves
from quantize.tensors import Array, QType

QK_K, N_SUB, SUB = 256, 16, 16
TYPE_SIZE = 110
QS, SCALES, D = 32, 96, 108  # where they begin
NMAX = 4
SC_MAX = np.float32(32)
LEVELS = np.arange(-NMAX, NMAX, dtype=np.float32)


def fit(x: Array, guide: TileGuide | None) -> Grid:
    """See `BlockFormat`."""
    head = np.empty((len(x), TYPE_SIZE - SCALES, LANES), np.uint8)
    d, sc = np.empty((len(x), LANES), np.float32), np.empty((len(x), N_SUB, LANES), np.uint8)
    if guide is None:
        scales, codes = np.empty(sc.shape, np.float32), np.empty(x.shape, np.uint8)
        _fit_plain(x, scales, codes)
        _code_by_maximum(scales, d, sc)
        searched = partial(_copied, codes=codes)
    else:
        scales, iscales, sum_w = fit_signed(x, N_SUB, NMAX, guide, mean_squares(x, 2, QK_K))
        _code_by_search(scales, sum_w, d, sc)
        searched = partial(search_codes, nmax=NMAX, iscales=iscales)
    store_halves(d, head, D - SCALES)
    _pack_scales(d, sc, head, scales)
    return Grid(head, LEVELS, scales, None, partial(round_anew, nmax=NMAX, scales=scales, searched=searched))


def _copied(x: Array, codes: Array) -> Array:
    """The codes of `make_q3`, which do not follow from x and a scale."""
    return codes.copy()


@kernel
def _fit_plain(x: Array, scales: Array, codes: Array) -> None:
    """The scale of each sub-block, and the codes of the search."""
    for t in range(len(x)):
        make_q3(x[t], scales[t], codes[t])


@kernel
def _code_by_maximum(scales: Array, d: Array, sc: Array) -> None:
    """Code the scales so that the scale of largest magnitude becomes -32, by way of an int8_t as ggml does."""
    largest = np.empty(LANES, np.float32)
    for t in range(len(d)):
        factor = d[t]
        largest_scale(scales[t], largest)
        for i in range(LANES):
            inverse = ONE / (-SC_MAX / largest[i])
            factor[i] = inverse if largest[i] != ZERO else ZERO
        for j in range(N_SUB):
            values, coded = scales[t, j], sc[t, j]
            for i in range(LANES):
                code = nearest_int(-SC_MAX / largest[i] * values[i])
                code = (code + np.float32(128)) % np.float32(256) - np.float32(128)
                code = code if code > -SC_MAX else -SC_MAX
                code = (code if code < SC_MAX - ONE else SC_MAX - ONE) + SC_MAX
                coded[i] = np.uint8(np.int32(code if largest[i] != ZERO else ZERO))


@kernel
def _code_by_search(scales: Array, sum_w: Array, d: Array, sc: Array) -> None:
    """Code the scales by `make_qx`, their errors weighed by the sums of the sub-blocks' weights."""
    finite = aligned_floats(N_SUB * LANES)
    wx = aligned_floats(N_SUB * LANES)
    state = aligned_floats(N_STATE * LANES)
    for t in range(len(d)):
        x, w, coded = scales[t].reshape(-1), sum_w[t].reshape(-1), sc[t].reshape(-1)
        for k in range(N_SUB * LANES):
            wx[k] = w[k] * x[k]
            # where overflow made a scale infinite or NaN, ggml's code is 0, as that of 0
            finite[k] = x[k] if abs(x[k]) < np.float32(np.inf) else ZERO
        find_largest(N_SUB, x, state)
        make_qx(N_SUB, SC_MAX, finite, w, wx, state)
        for i in range(LANES):
            d[t, i] = state[SCALE + i]
        for j in range(N_SUB):
            for i in range(LANES):
                zero = abs(state[LARGEST + i]) < EPS
                wish = state[BEST_ISCALE + i] * finite[j * LANES + i]
                code = nearest_code(wish, -SC_MAX, SC_MAX - ONE) + SC_MAX
                coded[j * LANES + i] = np.uint8(np.int32(ZERO if zero else code))


@kernel
def _pack_scales(d: Array, sc: Array, head: Array, scales: Array) -> None:
    """Write sc, and leave the scales that a reader will see."""
    for t in range(len(head)):
        for j in range(8):
            for i in range(LANES):
                head[t, j, i] = sc[t, j, i] & 15 | (sc[t, j + 8, i] & 15) << 4
        for j in range(4):
            for i in range(LANES):
                high = 0
                for c in range(4):
                    high |= (sc[t, 4 * c + j, i] >> 4) << (2 * c)
                head[t, 8 + j, i] = high
        for j in range(N_SUB):
            for i in range(LANES):
                scales[t, j, i] = d[t, i] * np.float32(np.int32(sc[t, j, i]) - np.int32(32))


@kernel
def pack(head: Array, codes: Array, blocks: Array) -> None:
    """See `BlockFormat.pack_kernel`."""
    for t in range(len(head)):
        tile, block = codes[t], blocks[t]
        copy_rows(head[t], block[SCALES:])
        block[:SCALES] = 0
        for c in range(8):
            for k in range(32):
                code, high, low = row(tile, 32 * c + k), block[k], block[QS + 32 * (c // 4) + k]
                for i in range(LANES):
                    low[i] |= (code[i] & 3) << 2 * (c % 4)
                    high[i] |= code[i] >> 2 << c


@kernel
def unpack(blocks: Array, values: Array) -> None:
    """See `BlockFormat.decode`."""
    for b in range(len(blocks)):
        block, x = blocks[b], values[b]
        d = load_f16(block, D)
        for j in range(N_SUB):
            low = block[SCALES + j % 8] >> (4 * (j // 8)) & 15
            high = block[SCALES + 8 + j % 4] >> (2 * (j // 4)) & 3
            scale = d * np.float32(np.int32(low | high << 4) - np.int32(32))
            for o in range(j * SUB, (j + 1) * SUB):
                k = o % 32
                two = block[QS + 32 * (o // 128) + k] >> (2 * (o // 32 % 4)) & 3
                code = two | (block[k] >> (o // 32) & 1) << 2
                x[o] = scale * np.float32(np.int32(code) - np.int32(4))


FORMAT = BlockFormat(QType.Q3_K, QK_K, TYPE_SIZE, fit, pack, unpack)


@kernel
def split(blocks: Array, codes: Array, scales: Array, mins: Array, factors: Array) -> None:
    """See `PartFormat`."""
    for b in range(len(blocks)):
        block = blocks[b]
        factors[b, 0] = load_f16(block, D)
        for j in range(N_SUB):
            low = block[SCALES + j % 8] >> (4 * (j // 8)) & 15
            high = block[SCALES + 8 + j % 4] >> (2 * (j // 4)) & 3
            scales[b, j] = int(low | high << 4) - 32
        for k in range(QK_K):
            low = block[QS + 32 * (k // 128) + k % 32] >> (2 * (k // 32 % 4)) & 3
            codes[b, k] = low | (block[k % 32] >> (k // 32) & 1) << 2


@kernel
def join(codes: Array, scales: Array, mins: Array, factors: Array, blocks: Array) -> None:
    """See `PartFormat`."""
    for b in range(len(blocks)):
        block = blocks[b]
        store_f16(block, D, factors[b, 0])
        for j in range(N_SUB):
            sc = int(scales[b, j]) + 32
            block[SCALES + j % 8] |= (sc & 15) << (4 * (j // 8))
            block[SCALES + 8 + j % 4] |= (sc >> 4) << (2 * (j // 4))
        for k in range(QK_K):
            block[QS + 32 * (k // 128) + k % 32] |= (codes[b, k] & 3) << (2 * (k // 32 % 4))
            block[k % 32] |= (codes[b, k] >> 2) << (k // 32)


PARTS = PartFormat(QType.Q3_K, QK_K, TYPE_SIZE, N_SUB, LEVELS, -32, 31, 0, split, join)
