"""The fit of the formats whose values are scale * code with signed codes and a search: Q4_0, Q5_0, Q3_K, Q6_K.

Source: ggml-quants.c, quantize_row_q{4,5}_0_impl, quantize_row_q3_K_impl, quantize_row_q6_K_ref and _impl.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from quantize.blocks.jit import kernel
from quantize.blocks.lanes import LANES, ONE, ZERO, aligned_floats, nearest_code
from quantize.blocks.qx import BEST_ISCALE, N_STATE, SCALE, find_largest, make_qx
from quantize.tensors import Array

NOTHING = np.empty((0, 0), np.float32)


class SignedGrids(NamedTuple):
    """The grids of some tiles, each float32 [n_tiles, n_sub, LANES]; value = scale * code."""

    scales: Array
    iscales: Array  # for `search_codes`
    sum_w: Array


def new_grids(n_tiles: int, n_sub: int) -> SignedGrids:
    """Grids to be filled."""
    return SignedGrids(*np.empty((3, n_tiles, n_sub, LANES), np.float32))


def fit(
    x: Array,
    n_sub: int,
    nmax: int,
    importance: Array | None = None,
    first: int = 0,
    sigma2: Array | None = None,
) -> SignedGrids:
    """Fit tiles x [n_tiles, n_sub * n * LANES] with codes -nmax..nmax - 1.

    Weights of the errors are x*x without `importance`, else importance, times sqrt(sigma2 + x*x) where there is a
    sigma2 [n_tiles, LANES]. `importance` is laid out by `importance_lanes`; `first` is the first block's number.
    """
    grids = new_grids(len(x), n_sub)
    qw = NOTHING if importance is None else importance
    _fit(x, np.float32(nmax), qw, first, NOTHING if sigma2 is None else sigma2, *grids)
    return grids


@kernel
def _fit(
    x: Array,
    nmax: np.float32,
    importance: Array,
    first: int,
    sigma2: Array,
    scales: Array,
    iscales: Array,
    sum_w: Array,
) -> None:
    n_tiles, n_sub, _ = scales.shape
    n = x.shape[1] // (n_sub * LANES)
    n_per_row = importance.shape[1] - LANES + 1  # blocks of a row
    w = aligned_floats(n * LANES)
    wx = aligned_floats(n * LANES)
    state = aligned_floats(N_STATE * LANES)
    for t in range(n_tiles):
        for j in range(n_sub):
            part = x[t, j * n * LANES : (j + 1) * n * LANES]
            if importance.size:
                column = (first + t * LANES) % n_per_row
                _load_importance(n, importance[j * n : (j + 1) * n], column, w)
                if sigma2.size:
                    _spread(n, part, sigma2[t], w)
            else:
                _square(n, part, w)
            _sum(n, w, sum_w[t, j])
            _multiply(n, part, w, wx)
            find_largest(n, part, state)
            make_qx(n, nmax, part, w, wx, state)
            for i in range(LANES):
                scales[t, j, i] = state[SCALE + i]
                iscales[t, j, i] = state[BEST_ISCALE + i]


@kernel
def _load_importance(n: int, importance: Array, column: int, w: Array) -> None:
    for k in range(n):
        row = importance[k, column : column + LANES]
        for i in range(LANES):
            w[k * LANES + i] = row[i]


@kernel
def _spread(n: int, x: Array, sigma2: Array, w: Array) -> None:
    for k in range(n):
        for i in range(LANES):
            v = x[k * LANES + i]
            w[k * LANES + i] *= np.sqrt(sigma2[i] + v * v)


@kernel
def _square(n: int, x: Array, w: Array) -> None:
    for k in range(n * LANES):
        w[k] = x[k] * x[k]


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


@kernel
def search_codes(x: Array, nmax: np.float32, iscales: Array, codes: Array) -> None:
    """The codes of the search, uint8 0..2 * nmax - 1 as x: the nearest to x * iscale, but 0 where that is 0."""
    n_tiles, n_sub, _ = iscales.shape
    n = x.shape[1] // (n_sub * LANES)
    for t in range(n_tiles):
        for j in range(n_sub):
            iscale = iscales[t, j]
            for k in range(j * n, (j + 1) * n):
                tile, row = x[t][k * LANES : (k + 1) * LANES], codes[t][k * LANES : (k + 1) * LANES]
                for i in range(LANES):
                    code = nearest_code(tile[i] * iscale[i], -nmax, nmax - ONE) + nmax
                    row[i] = np.uint8(np.int32(ZERO if iscale[i] == ZERO else code))


@kernel
def largest_scale(scales: Array, largest: Array) -> None:
    """Of scales [n_sub, LANES] the one of largest magnitude in each lane, the first of several: [LANES]."""
    for i in range(LANES):
        largest[i] = ZERO
    for j in range(len(scales)):
        row = scales[j]
        for i in range(LANES):
            v, top = row[i], largest[i]
            largest[i] = v if abs(v) > abs(top) else top
