"""The fits of Q4_0, Q5_0 (value = d * (code - nmax)) and Q4_1, Q5_1 (value = d * code + m), blocks of 32 weights.

Importances are spread by the mean square of the whole row. Codes belong to the unrounded scale and min: they are not
chosen anew for the float16 values that are stored.
Source: ggml-quants.c, quantize_row_q{4,5}_{0,1}_ref and _impl.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from quantize.blocks import affine, signed
from quantize.blocks.base import Grid
from quantize.blocks.error_weights import TileGuide
from quantize.blocks.jit import kernel
from quantize.blocks.lanes import HALF, ONE, ZERO
from quantize.blocks.nibbles import QK
from quantize.blocks.qx import find_largest
from quantize.blocks.tiles import LANES, aligned_floats, row, store_halves
from quantize.tensors import Array

LEAST, GREATEST = 0, LANES  # rows of the state of a search, [2 * LANES]
STEP = 8  # weights of a lane per turn of the lane loop, which LLVM unrolls
TOO_LARGE, WRAP = np.float32(64), np.float32(256)


def fit_scale(x: Array, guide: TileGuide | None, levels: Array) -> Grid:
    """Fit tiles x [n_tiles, QK * LANES] as Q4_0 or Q5_0; `levels` are -nmax .. nmax - 1."""
    nmax, head = len(levels) // 2, np.empty((len(x), 2, LANES), np.uint8)
    if guide is None:
        d, inverses = np.empty((2, len(x), LANES), np.float32)
        _fit_largest(x, np.float32(nmax), d, inverses, head)
        choose = partial(_round_half_up, nmax=nmax, inverses=inverses)
    else:
        fitted = signed.fit_signed(x, 1, nmax, guide, guide.row_squares)
        d = fitted.scales.reshape(-1, LANES)
        store_halves(d, head, 0)
        choose = partial(signed.search_codes, nmax=nmax, iscales=fitted.iscales)
    return Grid(head, levels, d[:, None], None, choose)


@kernel
def _fit_largest(x: Array, nmax: np.float32, d: Array, inverses: Array, head: Array) -> None:
    """The scale with which the largest magnitude becomes code 0."""
    for t in range(len(d)):
        scale, inverse = d[t], inverses[t]
        find_largest(QK, x[t], inverse)
        for i in range(LANES):
            v = inverse[i] / -nmax
            scale[i] = v
            inverse[i] = ONE / v if v != ZERO else ZERO
    store_halves(d, head, 0)


def _round_half_up(x: Array, nmax: int, inverses: Array) -> Array:
    codes = np.empty(x.shape, np.uint8)
    _round_up(x, np.float32(nmax), inverses, codes)
    return codes


@kernel
def _round_up(x: Array, nmax: np.float32, inverses: Array, codes: Array) -> None:
    above, top = nmax + HALF, np.int32(nmax + nmax) - np.int32(1)
    for t in range(len(x)):
        inverse = inverses[t]
        for k in range(QK):
            xs, code = row(x[t], k), row(codes[t], k)
            for i in range(LANES):
                v = xs[i] * inverse[i] + above
                # a scale may have no finite inverse
                new = np.int32(v if (v > ZERO) & (v < TOO_LARGE) else ZERO)
                code[i] = np.uint8(new if new < top else top)


def fit_scale_and_min(x: Array, guide: TileGuide | None, levels: Array, weighted: affine.Search) -> Grid:
    """Fit tiles x [n_tiles, QK * LANES] as Q4_1 or Q5_1; `levels` are 0 .. nmax."""
    head = np.empty((len(x), 4, LANES), np.uint8)
    if guide is None:
        nmax = len(levels) - 1
        d, mins, inverses, lows = np.empty((4, len(x), LANES), np.float32)
        _fit_range(x, np.float32(nmax), d, mins, inverses, lows, head)
        choose = partial(_round_off, nmax=nmax, inverses=inverses, lows=lows)
    else:
        fitted = affine.fit_weighted(x, 1, weighted, guide, guide.row_squares)
        d, mins = fitted.scales.reshape(-1, LANES), fitted.mins.reshape(-1, LANES)
        _store(d, mins, head)
        choose = partial(affine.search_codes, search=weighted, fit=fitted)
    return Grid(head, levels, d[:, None], mins[:, None], choose)


@kernel
def _store(d: Array, mins: Array, head: Array) -> None:
    """Write d and m = -min as float16, and leave what a reader will see."""
    store_halves(d, head, 0)
    _negate(mins)
    store_halves(mins, head, 2)
    _negate(mins)


@kernel
def _negate(values: Array) -> None:
    for t in range(len(values)):
        for i in range(LANES):
            values[t, i] = -values[t, i]


@kernel
def _fit_range(
    x: Array, nmax: np.float32, d: Array, mins: Array, inverses: Array, lows: Array, head: Array
) -> None:
    """The grid from the least weight to the greatest."""
    state = aligned_floats(2 * LANES)
    for t in range(len(d)):
        _find_range(x[t], state)
        _invert_range(nmax, state, d[t], inverses[t], lows[t])
        for i in range(LANES):
            mins[t, i] = -lows[t, i]
    _store(d, mins, head)


@kernel
def _find_range(x: Array, state: Array) -> None:
    for i in range(LANES):
        state[LEAST + i] = x[i]
        state[GREATEST + i] = x[i]
    for k in range(0, QK, STEP):
        _extend_range(x[k * LANES : (k + STEP) * LANES], state)


@kernel
def _extend_range(x: Array, state: Array) -> None:
    for i in range(LANES):
        low, high = state[LEAST + i], state[GREATEST + i]
        for k in range(STEP):
            v = x[k * LANES + i]
            low = v if v < low else low
            high = v if v > high else high
        state[LEAST + i] = low
        state[GREATEST + i] = high


@kernel
def _invert_range(nmax: np.float32, state: Array, d: Array, inverse: Array, low: Array) -> None:
    for i in range(LANES):
        v = (state[GREATEST + i] - state[LEAST + i]) / nmax
        d[i] = v
        inverse[i] = ONE / v if v != ZERO else ZERO
        low[i] = state[LEAST + i]


def _round_off(x: Array, nmax: int, inverses: Array, lows: Array) -> Array:
    codes = np.empty(x.shape, np.uint8)
    _cut_off(x, np.float32(nmax), inverses, lows, codes)
    return codes


@kernel
def _cut_off(x: Array, nmax: np.float32, inverses: Array, lows: Array, codes: Array) -> None:
    """Add a half and cut off, as ggml's casts do."""
    for t in range(len(x)):
        inverse, low = inverses[t], lows[t]
        for k in range(QK):
            xs, code = row(x[t], k), row(codes[t], k)
            for i in range(LANES):
                v = (xs[i] - low[i]) * inverse[i] + HALF
                v = v if v < WRAP else ZERO  # infinity and NaN become 0 on the way through ggml's integers
                code[i] = np.uint8(v if v < nmax else nmax)
