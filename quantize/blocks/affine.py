"""The fit of the formats whose values are scale * code - min: Q4_1, Q5_1, Q2_K, Q4_K, Q5_K.

Each sub-block gets a scale and a min by `qkx`; K-quants code those once more (see `factors`).
Source: ggml-quants.c, quantize_row_q{2,4,5}_K_ref and _impl, quantize_row_q{4,5}_1_impl.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from quantize.blocks.error_weights import TileGuide, load_importance, spread
from quantize.blocks.jit import inlined, kernel
from quantize.blocks.lanes import ZERO, clipped_code, nearest_code
from quantize.blocks.qkx import BEST_ISCALE, BEST_MIN, MIN, N_STATE, SCALE, SUM_W, make_qkx2, make_qkx3
from quantize.blocks.tiles import LANES, aligned_floats, row
from quantize.tensors import Array


class Search(NamedTuple):
    """The arguments of `make_qkx2` and `make_qkx3` that belong to a format."""

    nmax: np.float32  # largest code
    rmin: np.float32
    rdelta: np.float32
    nstep: int
    use_mad: bool | None = None  # None for sub-blocks of 32 weights
    clip_first: bool = False  # by `make_qkx3`


class AffineFit(NamedTuple):
    """Results of the search for some tiles, each float32 [n_tiles, n_sub, LANES]; value = scale * code - min."""

    scales: Array
    mins: Array
    sum_w: Array
    iscales: Array  # the search's codes are those of (x - low) * iscale, by the search's rule
    lows: Array


def plain_search(nmax: int, rmin: float, rdelta: float, nstep: int, use_mad: bool | None = None) -> Search:
    """The search without importances, which differs from format to format."""
    return Search(np.float32(nmax), np.float32(rmin), np.float32(rdelta), nstep, use_mad)


def weighted_search(nmax: int, use_mad: bool | None = None) -> Search:
    """The search with importances, the same in all formats."""
    return plain_search(nmax, -0.9, 0.05, 36, use_mad)._replace(clip_first=True)


def fit_plain(x: Array, n_sub: int, search: Search, rms: bool) -> AffineFit:
    """Fit tiles x [n_tiles, n_sub * n * LANES] with the weights |x|, plus the sub-block's root mean square if `rms`."""
    fit = AffineFit(*np.empty((5, len(x), n_sub, LANES), np.float32))
    _fit_plain(x, rms, *search[:-1], *fit)
    return fit


def fit_weighted(x: Array, n_sub: int, search: Search, guide: TileGuide, sigma2: Array) -> AffineFit:
    """Fit tiles with the weights importance * sqrt(sigma2 + x*x), sigma2 [n_tiles, LANES]."""
    fit = AffineFit(*np.empty((5, len(x), n_sub, LANES), np.float32))
    _fit_weighted(x, sigma2, guide.importance, guide.n_rows, *search[:-1], *fit)
    return fit


@kernel
def _fit_plain(
    x: Array,
    rms: bool,
    nmax: np.float32,
    rmin: np.float32,
    rdelta: np.float32,
    nstep: int,
    use_mad: bool | None,
    scales: Array,
    mins: Array,
    sum_w: Array,
    iscales: Array,
    lows: Array,
) -> None:
    n_tiles, n_sub, _ = scales.shape
    n = x.shape[1] // (n_sub * LANES)
    w, trial = aligned_floats(n * LANES), aligned_floats(n * LANES)
    state = aligned_floats(N_STATE * LANES)
    for t in range(n_tiles):
        for j in range(n_sub):
            sub_block = x[t][j * n * LANES : (j + 1) * n * LANES]
            _plain_weights(n, sub_block, rms, w)
            make_qkx2(n, nmax, sub_block, w, rmin, rdelta, nstep, use_mad, trial, state)
            _keep(state, t, j, scales, mins, sum_w, iscales, lows)


@kernel
def _fit_weighted(
    x: Array,
    sigma2: Array,
    importance: Array,
    n_rows: int,
    nmax: np.float32,
    rmin: np.float32,
    rdelta: np.float32,
    nstep: int,
    use_mad: bool | None,
    scales: Array,
    mins: Array,
    sum_w: Array,
    iscales: Array,
    lows: Array,
) -> None:
    n_tiles, n_sub, _ = scales.shape
    n = x.shape[1] // (n_sub * LANES)
    w, trial = aligned_floats(n * LANES), aligned_floats(n * LANES)
    state = aligned_floats(N_STATE * LANES)
    for t in range(n_tiles):
        for j in range(n_sub):
            sub_block = x[t][j * n * LANES : (j + 1) * n * LANES]
            load_importance(importance, n_rows, t, j * n, n, w)
            spread(n, sub_block, sigma2[t], w)
            make_qkx3(n, nmax, sub_block, w, rmin, rdelta, nstep, use_mad, trial, state)
            _keep(state, t, j, scales, mins, sum_w, iscales, lows)


@inlined
def _keep(
    state: Array,
    t: int,
    j: int,
    scales: Array,
    mins: Array,
    sum_w: Array,
    iscales: Array,
    lows: Array,
) -> None:
    for i in range(LANES):
        scales[t, j, i] = state[SCALE + i]
        mins[t, j, i] = -state[MIN + i]
        sum_w[t, j, i] = state[SUM_W + i]
        iscales[t, j, i] = state[BEST_ISCALE + i]
        lows[t, j, i] = state[BEST_MIN + i]


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


def search_codes(x: Array, search: Search, fit: AffineFit) -> Array:
    """The codes of the search, uint8 like x."""
    codes = np.empty(x.shape, np.uint8)
    _search_codes(x, search.nmax, search.clip_first, fit.iscales, fit.lows, codes)
    return codes


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
                xs, code = row(x[t], k), row(codes[t], k)
                for i in range(LANES):
                    wish = iscale[i] * (xs[i] - low[i])
                    rounded, clipped = nearest_code(wish, ZERO, nmax), clipped_code(wish, nmax)
                    code[i] = np.uint8(clipped if clip_first else rounded)


def round_anew(x: Array, search: Search, fit: AffineFit) -> Array:
    """The codes nearest to x on the final grids, `fit.scales` and `fit.mins`; where a scale is 0, the search's."""
    codes = np.empty(x.shape, np.uint8) if fit.scales.all() else search_codes(x, search, fit)
    _round_anew(x, search.nmax, fit.scales, fit.mins, codes)
    return codes


@kernel
def _round_anew(x: Array, nmax: np.float32, scales: Array, mins: Array, codes: Array) -> None:
    n_tiles, n_sub, _ = scales.shape
    n = x.shape[1] // (n_sub * LANES)
    for t in range(n_tiles):
        for j in range(n_sub):
            scale, minimum = scales[t, j], mins[t, j]
            for k in range(j * n, (j + 1) * n):
                xs, code = row(x[t], k), row(codes[t], k)
                for i in range(LANES):
                    d, old = scale[i], code[i]
                    new = nearest_code((xs[i] + minimum[i]) / d, ZERO, nmax)
                    code[i] = old if d == ZERO else np.uint8(new)
