"""Q2_K: 2.625 bits per weight. Super-blocks of 256 weights, 16 sub-blocks of 16; value = (d * sc) * code - (dmin * m).

    16 bytes: sc[j] | m[j] << 4 | 64 bytes: codes | float16 d | float16 dmin

    byte l of 32, weights 128 h and on: code[128 h + l] | code[.. + 32] << 2 | code[.. + 64] << 4 | code[.. + 96] << 6

Source: ggml-quants.c, quantize_row_q2_K_ref, quantize_row_q2_K_impl, dequantize_row_q2_K.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from quantize.blocks.affine import fit_plain, fit_weighted, plain_search, round_anew, weighted_search
from quantize.blocks.base import BlockFormat, Grid
from quantize.blocks.error_weights import TileGuide, mean_squares
from quantize.blocks.factors import code_by_maximum, code_by_search
from quantize.blocks.half import load_f16
from quantize.blocks.jit import kernel
from quantize.blocks.parts import PartFormat, store_f16
from quantize.blocks.tiles import LANES, copy_rows, row, store_halves
from quantize.tensors import Array, QType

TYPE_SIZE = 84
QK_K, N_SUB, SUB = 256, 16, 16  # weights of a super-block, its sub-blocks, their weights
CODES, D = 16, 80  # where they begin
SC_MAX = 15
LEVELS = np.arange(4, dtype=np.float32)
PLAIN, WEIGHTED = plain_search(3, -0.5, 0.1, 15, use_mad=True), weighted_search(3, use_mad=False)


def fit(x: Array, guide: TileGuide | None) -> Grid:
    """See `BlockFormat`."""
    search = PLAIN if guide is None else WEIGHTED
    if guide is None:
        fitted = fit_plain(x, N_SUB, search, rms=False)
        sc, d = code_by_maximum(fitted.scales, SC_MAX)
        m, dmin = code_by_maximum(fitted.mins, SC_MAX)
    else:
        fitted = fit_weighted(x, N_SUB, search, guide, mean_squares(x, 1, QK_K))
        sc, d = code_by_search(fitted.scales, fitted.sum_w, SC_MAX)
        m, dmin = code_by_search(fitted.mins, fitted.sum_w, SC_MAX)
    head = np.empty((len(x), N_SUB + 4, LANES), np.uint8)
    store_halves(d, head, N_SUB)
    store_halves(dmin, head, N_SUB + 2)
    _pack_scales(d, dmin, sc, m, head, fitted.scales, fitted.mins)
    return Grid(head, LEVELS, fitted.scales, fitted.mins, partial(round_anew, search=search, fit=fitted))


@kernel
def _pack_scales(d: Array, dmin: Array, sc: Array, m: Array, head: Array, scales: Array, mins: Array) -> None:
    """Write sc and m, and leave the scales and mins that a reader will see.

    As in ggml the two are joined unclipped: the code of a negative scale, wrapped round in a uint8_t, spills over.
    """
    for t in range(len(head)):
        for j in range(N_SUB):
            for i in range(LANES):
                byte = (int(sc[t, j, i]) | int(m[t, j, i]) << 4) & 255
                head[t, j, i] = np.uint8(byte)
                scales[t, j, i] = d[t, i] * np.float32(byte & 15)
                mins[t, j, i] = dmin[t, i] * np.float32(byte >> 4)


@kernel
def pack(head: Array, codes: Array, blocks: Array) -> None:
    """See `BlockFormat.pack_kernel`."""
    for t in range(len(head)):
        tile, block = codes[t], blocks[t]
        copy_rows(head[t, :N_SUB], block[:CODES])
        copy_rows(head[t, N_SUB:], block[D:])
        for h in range(2):
            for k in range(32):
                byte, first = block[CODES + 32 * h + k], 128 * h + k
                a, b, c, e = (
                    row(tile, first),
                    row(tile, first + 32),
                    row(tile, first + 64),
                    row(tile, first + 96),
                )
                for i in range(LANES):
                    byte[i] = a[i] | b[i] << 2 | c[i] << 4 | e[i] << 6


@kernel
def unpack(blocks: Array, values: Array) -> None:
    """See `BlockFormat.decode`."""
    for b in range(len(blocks)):
        block, x = blocks[b], values[b]
        d, dmin = load_f16(block, D), load_f16(block, D + 2)
        for j in range(N_SUB):
            scale, minimum = d * np.float32(block[j] & 15), dmin * np.float32(block[j] >> 4)
            start, shift = CODES + 32 * (j // 8) + 16 * (j % 2), 2 * (j % 8 // 2)
            quarter = block[start : start + SUB]
            for k in range(SUB):
                x[SUB * j + k] = scale * np.float32(quarter[k] >> shift & 3) - minimum


FORMAT = BlockFormat(QType.Q2_K, QK_K, TYPE_SIZE, fit, pack, unpack)


@kernel
def split(blocks: Array, codes: Array, scales: Array, mins: Array, factors: Array) -> None:
    """See `PartFormat`."""
    for b in range(len(blocks)):
        block = blocks[b]
        factors[b, 0], factors[b, 1] = load_f16(block, D), load_f16(block, D + 2)
        for j in range(N_SUB):
            scales[b, j], mins[b, j] = block[j] & 15, block[j] >> 4
        for k in range(QK_K):
            codes[b, k] = block[CODES + 32 * (k // 128) + k % 32] >> (2 * (k // 32 % 4)) & 3


@kernel
def join(codes: Array, scales: Array, mins: Array, factors: Array, blocks: Array) -> None:
    """See `PartFormat`."""
    for b in range(len(blocks)):
        block = blocks[b]
        store_f16(block, D, factors[b, 0])
        store_f16(block, D + 2, factors[b, 1])
        for j in range(N_SUB):
            block[j] = int(scales[b, j]) | int(mins[b, j]) << 4
        for k in range(QK_K):
            block[CODES + 32 * (k // 128) + k % 32] |= codes[b, k] << (2 * (k // 32 % 4))


PARTS = PartFormat(QType.Q2_K, QK_K, TYPE_SIZE, N_SUB, LEVELS, 0, 15, 15, split, join)
