"""The fit of the formats whose values are scale * code - min: Q4_1, Q5_1, Q2_K, Q4_K, Q5_K.

Each sub-block gets a scale and a min by `make_qkx`. K-quants code those of a super-block once more, with one float16
factor each: value = (d * sc) * code - (dmin * m); by their maximum, or, with importances, by `make_qp`.
Source: ggml-quants.c, quantize_row_q{2,4,5}_K_ref and _impl, quantize_row_q{4,5}_1_impl.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from quantize.blocks.jit import kernel
from quantize.blocks.lanes import (
    LANES,
    ZERO,
    aligned_floats,
    as_byte,
    clipped_code,
    nearest_code,
    nearest_int,
    rounded_to_half,
    row,
)
from quantize.blocks.qkx import BEST_ISCALE, BEST_MIN, MIN, SCALE, SUM_W, make_qkx
from quantize.blocks.qkx import N_STATE as N_QKX_STATE
from quantize.blocks.qp import N_STATE as N_QP_STATE
from quantize.blocks.qp import make_qp
from quantize.tensors import Array

NOTHING = np.empty((0, 0), np.float32)


class Search(NamedTuple):
    """The arguments of `make_qkx` that belong to a format."""

    nmax: np.float32  # largest code
    rmin: np.float32
    rdelta: np.float32
    nstep: int
    use_mad: bool = False
    clip_first: bool = False


class Grids(NamedTuple):
    """The grids of some tiles, each float32 [n_tiles, n_sub, LANES]; value = scale * code - min."""

    scales: Array
    mins: Array
    sum_w: Array
    iscales: Array  # the search's codes are those of (x - low) * iscale, by `make_qkx`'s rule
    lows: Array


def plain_search(nmax: int, rmin: float, rdelta: float, nstep: int, use_mad: bool = False) -> Search:
    """The search without importances, which differs from format to format."""
    return Search(np.float32(nmax), np.float32(rmin), np.float32(rdelta), nstep, use_mad)


def weighted_search(nmax: int) -> Search:
    """The search with importances, the same in all formats."""
    return plain_search(nmax, -0.9, 0.05, 36)._replace(clip_first=True)


def fit_plain(x: Array, n_sub: int, search: Search, rms: bool) -> Grids:
    """Fit tiles x [n_tiles, n_sub * n * LANES] with the weights |x|, plus the sub-block's root mean square if `rms`."""
    grids = Grids(*np.empty((5, len(x), n_sub, LANES), np.float32))
    _fit(x, rms, NOTHING, NOTHING, 0, *search, *grids)
    return grids


def fit_weighted(x: Array, n_sub: int, search: Search, sigma2: Array, importance: Array, first: int) -> Grids:
    """Fit tiles with the weights importance * sqrt(sigma2 + x*x).

    sigma2 is [n_tiles, LANES]; importance is laid out by `importance_lanes`; `first` is the first block's number.
    """
    grids = Grids(*np.empty((5, len(x), n_sub, LANES), np.float32))
    _fit(x, False, sigma2, importance, first, *search, *grids)
    return grids


@kernel
def _fit(
    x: Array,
    rms: bool,
    sigma2: Array,
    importance: Array,
    first: int,
    nmax: np.float32,
    rmin: np.float32,
    rdelta: np.float32,
    nstep: int,
    use_mad: bool,
    clip_first: bool,
    scales: Array,
    mins: Array,
    sum_w: Array,
    iscales: Array,
    lows: Array,
) -> None:
    n_tiles, n_sub, _ = scales.shape
    n = x.shape[1] // (n_sub * LANES)
    n_per_row = importance.shape[1] - LANES + 1  # blocks of a row
    w, trial = aligned_floats(n * LANES), aligned_floats(n * LANES)
    state = aligned_floats(N_QKX_STATE * LANES)
    for t in range(n_tiles):
        for j in range(n_sub):
            part = x[t][j * n * LANES : (j + 1) * n * LANES]
            if importance.size:
                column = (first + t * LANES) % n_per_row
                _importance_weights(n, part, importance[j * n : (j + 1) * n], column, sigma2[t], w)
            else:
                _plain_weights(n, part, rms, w)
            make_qkx(n, nmax, part, w, rmin, rdelta, nstep, use_mad, clip_first, trial, state)
            for i in range(LANES):
                scales[t, j, i] = state[SCALE + i]
                mins[t, j, i] = -state[MIN + i]
                sum_w[t, j, i] = state[SUM_W + i]
                iscales[t, j, i] = state[BEST_ISCALE + i]
                lows[t, j, i] = state[BEST_MIN + i]


def search_codes(x: Array, search: Search, grids: Grids) -> Array:
    """The codes of the search, uint8 like x: they remain where no grid is coded, or where its scale became 0."""
    codes = np.empty(x.shape, np.uint8)
    _search_codes(x, search.nmax, search.clip_first, grids.iscales, grids.lows, codes)
    return codes


def codes_to_round(x: Array, search: Search, grids: Grids) -> Array:
    """Where `rounding.nearest` may write its codes: those of the search if some of them can remain, else anything."""
    return np.empty(x.shape, np.uint8) if grids.scales.all() else search_codes(x, search, grids)


@kernel
def _search_codes(
    x: Array, nmax: np.float32, clip_first: bool, iscales: Array, lows: Array, codes: Array
) -> None:
    n_tiles, n_sub, _ = iscales.shape
    n = x.shape[1] // (n_sub * LANES)
    for t in range(n_tiles):
        for j in range(n_sub):
            iscale, low = iscales[t, j], lows[t, j]
            for k in range(j * n, (j + 1) * n):
                xs, found = row(x[t], k), row(codes[t], k)
                for i in range(LANES):
                    wish = iscale[i] * (xs[i] - low[i])
                    rounded, clipped = nearest_code(wish, ZERO, nmax), clipped_code(wish, nmax)
                    found[i] = np.uint8(clipped if clip_first else rounded)


@kernel
def _plain_weights(n: int, x: Array, rms: bool, w: Array) -> None:
    sums = np.zeros(LANES, np.float32)
    for k in range(n if rms else 0):
        xs = row(x, k)
        for i in range(LANES):
            sums[i] += xs[i] * xs[i]
    for k in range(n):
        xs, ws = row(x, k), row(w, k)
        for i in range(LANES):
            ws[i] = np.sqrt(sums[i] / np.float32(n)) + abs(xs[i])


@kernel
def _importance_weights(n: int, x: Array, importance: Array, column: int, sigma2: Array, w: Array) -> None:
    for k in range(n):
        xs, ws, qw = row(x, k), row(w, k), importance[k][column : column + LANES]
        for i in range(LANES):
            ws[i] = qw[i] * np.sqrt(sigma2[i] + xs[i] * xs[i])


def mean_squares(x: Array, times: int) -> Array:
    """`times` the mean of x*x of each super-block, summed in index order: the sigma2 [n_tiles, LANES] of K-quants."""
    found = np.empty((len(x), LANES), np.float32)
    _mean_squares(x, np.float32(times), found)
    return found


@kernel
def _mean_squares(x: Array, times: np.float32, found: Array) -> None:
    n = x.shape[1] // LANES
    for t in range(len(x)):
        sums = found[t]
        for i in range(LANES):
            sums[i] = ZERO
        for k in range(n):
            xs = row(x[t], k)
            for i in range(LANES):
                sums[i] += xs[i] * xs[i]
        for i in range(LANES):
            sums[i] = times * sums[i] / np.float32(n)


def code_by_maximum(values: Array, qmax: int) -> tuple[Array, Array]:
    """Code the scales (or mins) of super-blocks so that the largest becomes qmax.

    values is [n_tiles, n_sub, LANES]. Returns codes as a uint8_t leaves them (float32, same shape) and the factor
    [n_tiles, LANES], a float16 value.
    """
    codes, factors = np.empty_like(values), np.empty((len(values), LANES), np.float32)
    _code_by_maximum(values, np.float32(qmax), codes, factors)
    return codes, factors


@kernel
def _code_by_maximum(values: Array, qmax: np.float32, codes: Array, factors: Array) -> None:
    n_tiles, n_sub, _ = values.shape
    for t in range(n_tiles):
        for i in range(LANES):
            high = ZERO
            for j in range(n_sub):
                high = values[t, j, i] if values[t, j, i] > high else high
            inverse = qmax / high if high > ZERO else ZERO
            for j in range(n_sub):
                codes[t, j, i] = as_byte(nearest_int(inverse * values[t, j, i]))
            factors[t, i] = rounded_to_half(high / qmax)


def code_by_search(values: Array, sum_w: Array, qmax: int) -> tuple[Array, Array]:
    """Code the scales (or mins) of super-blocks by `make_qp`; arguments and results as in `code_by_maximum`."""
    codes, factors = np.empty_like(values), np.empty((len(values), LANES), np.float32)
    _code_by_search(values, sum_w, np.float32(qmax), codes, factors)
    return codes, factors


@kernel
def _code_by_search(values: Array, sum_w: Array, qmax: np.float32, codes: Array, factors: Array) -> None:
    state = aligned_floats(N_QP_STATE * LANES)
    n_tiles, n_sub, _ = values.shape
    for t in range(n_tiles):
        scale = factors[t]
        make_qp(n_sub, qmax, values[t].reshape(-1), sum_w[t].reshape(-1), codes[t].reshape(-1), scale, state)
        for i in range(LANES):
            scale[i] = rounded_to_half(scale[i])
