"""Q3_K: 3.4375 bits per weight. 256 weights, sixteen sub-blocks of 16; value = d * (sc - 32) * (code - 4).

    32 bytes hmask | 64 bytes qs | 12 bytes scales | float16 d

    hmask[k]            bit c is bit 2 of code[32 c + k]
    qs[32 h + k]        the two low bits of code[128 h + k], .. + 32, .. + 64, .. + 96, from the lowest bits on (k < 32)
    scales[j]           sc[j] & 15 | (sc[j + 8] & 15) << 4          (j < 8)
    scales[8 + j]       sc[j] >> 4, sc[j + 4] >> 4, sc[j + 8] >> 4, sc[j + 12] >> 4, from the lowest bits on (j < 4)

Source: ggml-quants.c, quantize_row_q3_K_ref, quantize_row_q3_K_impl, dequantize_row_q3_K.
"""

from __future__ import annotations

import numpy as np

from quantize.blocks.affine import mean_squares
from quantize.blocks.base import BlockFormat
from quantize.blocks.half import load_f16, store_f16
from quantize.blocks.jit import kernel
from quantize.blocks.lanes import (
    LANES,
    ONE,
    ZERO,
    aligned_floats,
    chunks,
    importance_lanes,
    nearest_code,
    nearest_int,
    rounded_to_half,
)
from quantize.blocks.q3 import make_q3
from quantize.blocks.qx import BEST_ISCALE, EPS, LARGEST, N_STATE, SCALE, find_largest, make_qx
from quantize.blocks.rounding import nearest_signed
from quantize.blocks.signed import fit, largest_scale, search_codes
from quantize.tensors import Array, QType

QK_K, N_SUB, SUB = 256, 16, 16
TYPE_SIZE = 110
QS, SCALES, D = 32, 96, 108  # where they begin
NMAX = np.float32(4)
SC_MAX = np.float32(32)


def encode(weights: Array, importance: Array | None, out: Array) -> None:
    """See `BlockFormat.encode`."""
    lanes = None if importance is None else importance_lanes(importance, QK_K)
    for chunk in chunks(weights, QK_K, out, TYPE_SIZE):
        codes = np.empty(chunk.x.shape, np.uint8)
        d = np.empty((len(chunk.x), LANES), np.float32)
        sc = np.empty((len(chunk.x), N_SUB, LANES), np.uint8)
        if lanes is None:
            scales = np.empty(sc.shape, np.float32)
            _fit_plain(chunk.x, scales, codes)
            _code_by_maximum(scales, d, sc)
        else:
            grids = fit(chunk.x, N_SUB, int(NMAX), lanes, chunk.first, mean_squares(chunk.x, 2))
            search_codes(chunk.x, NMAX, grids.iscales, codes)
            scales = grids.scales
            _code_by_search(scales, grids.sum_w, d, sc)
        _decode_scales(d, sc, scales)
        nearest_signed(chunk.x, NMAX, scales, codes)
        pack(d, sc, codes, chunk.blocks)


@kernel
def _fit_plain(x: Array, scales: Array, codes: Array) -> None:
    """The scale of each sub-block, and the codes of the search."""
    for t in range(len(x)):
        make_q3(x[t], scales[t], codes[t])


@kernel
def _code_by_maximum(scales: Array, d: Array, sc: Array) -> None:
    """Code the scales so that the one of largest magnitude becomes -32, by way of an int8_t as ggml does."""
    largest = np.empty(LANES, np.float32)
    for t in range(len(d)):
        factor = d[t]
        largest_scale(scales[t], largest)
        for i in range(LANES):
            inverse = ONE / (-SC_MAX / largest[i])
            factor[i] = inverse if largest[i] != ZERO else ZERO
        for j in range(N_SUB):
            row, found = scales[t, j], sc[t, j]
            for i in range(LANES):
                code = nearest_int(-SC_MAX / largest[i] * row[i])
                code = (code + np.float32(128)) % np.float32(256) - np.float32(128)
                code = code if code > -SC_MAX else -SC_MAX
                code = (code if code < SC_MAX - ONE else SC_MAX - ONE) + SC_MAX
                found[i] = np.uint8(np.int32(code if largest[i] != ZERO else ZERO))


@kernel
def _code_by_search(scales: Array, sum_w: Array, d: Array, sc: Array) -> None:
    """Code the scales by `make_qx`, their errors weighed by the sums of the sub-blocks' weights."""
    finite = aligned_floats(N_SUB * LANES)
    wx = aligned_floats(N_SUB * LANES)
    state = aligned_floats(N_STATE * LANES)
    for t in range(len(d)):
        x, w, found = scales[t].reshape(-1), sum_w[t].reshape(-1), sc[t].reshape(-1)
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
                code = (
                    nearest_code(state[BEST_ISCALE + i] * finite[j * LANES + i], -SC_MAX, SC_MAX - ONE)
                    + SC_MAX
                )
                found[j * LANES + i] = np.uint8(np.int32(ZERO if zero else code))


@kernel
def _decode_scales(d: Array, sc: Array, scales: Array) -> None:
    """Round d to float16, and give each sub-block the scale that a reader will see."""
    for t in range(len(d)):
        factor = d[t]
        for i in range(LANES):
            factor[i] = rounded_to_half(factor[i])
        for j in range(N_SUB):
            for i in range(LANES):
                scales[t, j, i] = factor[i] * np.float32(np.int32(sc[t, j, i]) - np.int32(32))


@kernel
def pack(d: Array, sc: Array, codes: Array, blocks: Array) -> None:
    """Tiles of d [n_tiles, LANES], sc [n_tiles, N_SUB, LANES] and codes into blocks [n_blocks, TYPE_SIZE]."""
    for b in range(len(blocks)):
        t, i, block = b // LANES, b % LANES, blocks[b]
        tile = codes[t]
        for k in range(32):
            high = 0
            for half in range(2):
                low = 0
                for c in range(4):
                    code = tile[(128 * half + 32 * c + k) * LANES + i]
                    low |= (code & 3) << (2 * c)
                    high |= (code >> 2) << (4 * half + c)
                block[QS + 32 * half + k] = low
            block[k] = high
        for j in range(8):
            block[SCALES + j] = sc[t, j, i] & 15 | (sc[t, j + 8, i] & 15) << 4
        for j in range(4):
            high = 0
            for c in range(4):
                high |= (sc[t, 4 * c + j, i] >> 4) << (2 * c)
            block[SCALES + 8 + j] = high
        store_f16(d[t, i], block, D)


def decode(blocks: Array, out: Array) -> None:
    """See `BlockFormat.decode`."""
    _unpack(blocks.reshape(-1, TYPE_SIZE), out.reshape(-1, QK_K))


@kernel
def _unpack(blocks: Array, values: Array) -> None:
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


FORMAT = BlockFormat(QType.Q3_K, QK_K, TYPE_SIZE, encode, decode)
