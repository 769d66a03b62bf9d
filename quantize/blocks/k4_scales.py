"""The head that Q4_K and Q5_K share: eight sub-blocks of 32 weights, and 6-bit scales and mins in 12 bytes.

    byte j     (j < 4)   sc[j] | (sc[j + 4] >> 4) << 6
    byte j + 4 (j < 4)   m[j]  | (m[j + 4] >> 4) << 6
    byte j + 8 (j < 4)   sc[j + 4] & 15 | (m[j + 4] & 15) << 4

Source: ggml-quants.c, quantize_row_q4_K_ref, quantize_row_q4_K_impl (and q5_K), get_scale_min_k4.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from quantize.blocks.affine import Search, fit_plain, fit_weighted, round_anew
from quantize.blocks.base import Grid
from quantize.blocks.error_weights import TileGuide, mean_squares
from quantize.blocks.factors import code_by_maximum, code_by_search
from quantize.blocks.half import load_f16
from quantize.blocks.jit import kernel
from quantize.blocks.parts import store_f16
from quantize.blocks.tiles import LANES, store_halves
from quantize.tensors import Array

QK_K, N_SUB, SUB = 256, 8, 32  # weights of a super-block, its sub-blocks, their weights
SC_MAX = 63
HEAD = 16  # bytes of d, dmin and the packed scales


def fit_k4(x: Array, guide: TileGuide | None, search: Search, levels: Array, clip: bool) -> Grid:
    """Fit tiles x [n_tiles, QK_K * LANES]; `clip` keeps coded scales within 6 bits.

    Where they are not clipped (Q4_K with importances), those of negative scales, which `make_qp` wraps round, run into
    their neighbours' bits as they do in ggml.
    """
    if guide is None:
        fitted = fit_plain(x, N_SUB, search, rms=True)
        sc, d = code_by_maximum(fitted.scales, SC_MAX)
        m, dmin = code_by_maximum(fitted.mins, SC_MAX)
    else:
        fitted = fit_weighted(x, N_SUB, search, guide, mean_squares(x, 2, QK_K))
        sc, d = code_by_search(fitted.scales, fitted.sum_w, SC_MAX)
        m, dmin = code_by_search(fitted.mins, fitted.sum_w, SC_MAX)
    if clip:
        np.minimum(sc, np.float32(SC_MAX), out=sc)
        np.minimum(m, np.float32(SC_MAX), out=m)
    head = np.empty((len(x), HEAD, LANES), np.uint8)
    store_halves(d, head, 0)
    store_halves(dmin, head, 2)
    _pack_scales(sc, m, head)
    _unpack_scales(d, dmin, head, fitted.scales, fitted.mins)
    return Grid(head, levels, fitted.scales, fitted.mins, partial(round_anew, search=search, fit=fitted))


@kernel
def _pack_scales(sc: Array, m: Array, head: Array) -> None:
    for t in range(len(head)):
        for i in range(LANES):
            for j in range(4):
                low_sc, high_sc = int(sc[t, j, i]), int(sc[t, j + 4, i])
                low_m, high_m = int(m[t, j, i]), int(m[t, j + 4, i])
                head[t, 4 + j, i] = np.uint8((low_sc | (high_sc >> 4) << 6) & 255)
                head[t, 8 + j, i] = np.uint8((low_m | (high_m >> 4) << 6) & 255)
                head[t, 12 + j, i] = np.uint8((high_sc & 15 | (high_m & 15) << 4) & 255)


@kernel
def _unpack_scales(d: Array, dmin: Array, head: Array, scales: Array, mins: Array) -> None:
    """The scales and mins that a reader will see."""
    for t in range(len(head)):
        for j in range(N_SUB):
            for i in range(LANES):
                sc, m = coded_scale(j, head[t, 4:, i])
                scales[t, j, i] = d[t, i] * np.float32(sc)
                mins[t, j, i] = dmin[t, i] * np.float32(m)


@kernel
def coded_scale(j: int, packed: Array) -> tuple[int, int]:
    """sc[j] and m[j] from the 12 bytes."""
    if j < 4:
        return packed[j] & 63, packed[j + 4] & 63
    return packed[j + 4] & 15 | (packed[j - 4] >> 6) << 4, packed[j + 4] >> 4 | (packed[j] >> 6) << 4


@kernel
def decoded_scales(j: int, block: Array) -> tuple[np.float32, np.float32]:
    """The scale and the min of sub-block j of a block's bytes."""
    d, dmin = load_f16(block, 0), load_f16(block, 2)
    sc, m = coded_scale(j, block[4:HEAD])
    return d * np.float32(sc), dmin * np.float32(m)


@kernel
def split_head(block: Array, scales: Array, mins: Array, factors: Array) -> None:
    """The parts in the head of a block (see `PartFormat`)."""
    factors[0], factors[1] = load_f16(block, 0), load_f16(block, 2)
    for j in range(N_SUB):
        sc, m = coded_scale(j, block[4:HEAD])
        scales[j], mins[j] = sc, m


@kernel
def join_head(scales: Array, mins: Array, factors: Array, block: Array) -> None:
    """The reverse of `split_head`."""
    store_f16(block, 0, factors[0])
    store_f16(block, 2, factors[1])
    for j in range(4):
        low_sc, high_sc = int(scales[j]), int(scales[j + 4])
        low_m, high_m = int(mins[j]), int(mins[j + 4])
        block[4 + j] = low_sc | (high_sc >> 4) << 6
        block[8 + j] = low_m | (high_m >> 4) << 6
        block[12 + j] = high_sc & 15 | (high_m & 15) << 4
