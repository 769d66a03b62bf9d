"""The fit of the formats whose values are scale * (code - nmax) and that search: Q4_0, Q5_0, Q3_K, Q6_K.

Source: ggml-quants.c, quantize_row_q{4,5}_0_impl, quantize_row_q3_K_impl, quantize_row_q6_K_ref and _impl.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from quantize.blocks.error_weights import TileGuide, load_importance, spread, square
from quantize.blocks.jit import kernel
from quantize.blocks.lanes import ONE, ZERO, nearest_code
from quantize.blocks.qx import BEST_ISCALE, N_STATE, SCALE, find_largest, make_qx
from quantize.blocks.tiles import LANES, aligned_floats, row
from quantize.tensors import Array


class SignedFit(NamedTuple):
    """Results of the search for some tiles, each float32 [n_tiles, n_sub, LANES]."""

    scales: Array
    iscales: Array  # the search's codes are those of x * iscale
    sum_w: Array


def fit_signed(
    x: Array, n_sub: int, nmax: int, guide: TileGuide | None = None, sigma2: Array | None = None
) -> SignedFit:
    """Fit tiles x [n_tiles, n_sub * n * LANES] with codes 0..2 * nmax - 1.

    Weights of the errors are x*x without a guide, else importance, times sqrt(sigma2 + x*x) where there is a sigma2
    [n_tiles, LANES].
    """
    fit = SignedFit(*np.empty((3, len(x), n_sub, LANES), np.float32))
    importance, n_rows = (None, 1) if guide is None else (guide.importance, guide.n_rows)
    _fit(x, np.float32(nmax), importance, n_rows, sigma2, *fit)
    return fit


@kernel
def _fit(
    x: Array,
    nmax: np.float32,
    importance: Array | None,
    n_rows: int,
    sigma2: Array | None,
    scales: Array,
    iscales: Array,
    sum_w: Array,
) -> None:
    n_tiles, n_sub, _ = scales.shape
    n = x.shape[1] // (n_sub * LANES)
    w = aligned_floats(n * LANES)
    wx = aligned_floats(n * LANES)
    state = aligned_floats(N_STATE * LANES)
    for t in range(n_tiles):
        for j in range(n_sub):
            sub_block = x[t, j * n * LANES : (j + 1) * n * LANES]
            if importance is None:  # numba leaves out what None does not reach
                square(sub_block, w)
            else:
                load_importance(importance, n_rows, t, j * n, n, w)
                if sigma2 is not None:
                    spread(n, sub_block, sigma2[t], w)
            _sum(n, w, sum_w[t, j])
            _multiply(n, sub_block, w, wx)
            find_largest(n, sub_block, state)
            make_qx(n, nmax, sub_block, w, wx, state)
            for i in range(LANES):
                scales[t, j, i] = state[SCALE + i]
                iscales[t, j, i] = state[BEST_ISCALE + i]


@kernel
def _multiply(n: int, x: Array, w: Array, wx: Array) -> None:
    for k in range(n * LANES):
        wx[k] = w[k] * x[k]


@kernel
def _sum(n: int, w: Array, sums: Array) -> None:
    for i in range(LANES):
        sums[i] = ZERO
    for k in range(n):
        for i in range(LANES):
            sums[i] += w[k * LANES + i]


def search_codes(x: Array, nmax: int, iscales: Array) -> Array:
    """The codes of the search, uint8 0..2 * nmax - 1 like x: the nearest to x * iscale, but 0 where that is 0."""
    codes = np.empty(x.shape, np.uint8)
    _search_codes(x, np.float32(nmax), iscales, codes)
    return codes


@kernel
def _search_codes(x: Array, nmax: np.float32, iscales: Array, codes: Array) -> None:
    n_tiles, n_sub, _ = iscales.shape
    n = x.shape[1] // (n_sub * LANES)
    for t in range(n_tiles):
        for j in range(n_sub):
            iscale = iscales[t, j]
            for k in range(j * n, (j + 1) * n):
                xs, code = row(x[t], k), row(codes[t], k)
                for i in range(LANES):
                    new = nearest_code(xs[i] * iscale[i], -nmax, nmax - ONE) + nmax
                    code[i] = np.uint8(np.int32(ZERO if iscale[i] == ZERO else new))


def round_anew(x: Array, nmax: int, scales: Array, searched: Callable[[Array], Array]) -> Array:
    """The codes nearest to x on the final scales; where a scale is 0, those of the search, `searched(x)`."""
    codes = np.empty(x.shape, np.uint8) if scales.all() else searched(x)
    _round_anew(x, np.float32(nmax), scales, codes)
    return codes


@kernel
def _round_anew(x: Array, nmax: np.float32, scales: Array, codes: Array) -> None:
    n_tiles, n_sub, _ = scales.shape
    n = x.shape[1] // (n_sub * LANES)
    for t in range(n_tiles):
        for j in range(n_sub):
            scale = scales[t, j]
            for k in range(j * n, (j + 1) * n):
                xs, code = row(x[t], k), row(codes[t], k)
                for i in range(LANES):
                    d, old = scale[i], np.int32(code[i])
                    new = np.int32(nearest_code(xs[i] / d, -nmax, nmax - ONE) + nmax)
                    code[i] = np.uint8(old if d == ZERO else new)


@kernel
def largest_scale(scales: Array, largest: Array) -> None:
    """The scale of largest magnitude in each lane of scales [n_sub, LANES], the first of several: [LANES]."""
    for i in range(LANES):
        largest[i] = ZERO
    for j in range(len(scales)):
        values = scales[j]
        for i in range(LANES):
            v, top = values[i], largest[i]
            largest[i] = v if abs(v) > abs(top) else top
