"""The search that IQ3_XXS and IQ3_S share, for sub-blocks of 32 weights: value = scale * (2 * level + 1), with a sign.

Many scales are tried. At each the groups of four magnitudes are replaced by entries of the codebook (`iq3_cells`), and
the scale and entries that are best by least squares are kept. If one of the groups had no pattern of the codebook then,
groups are replaced once more at the best scale, and the scale is fitted to that.

Source: ggml-quants.c, quantize_row_iq3_xxs_impl and quantize_row_iq3_s_impl.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from quantize.blocks.error_weights import (
    NO_GUIDE,
    NOTHING,
    TileGuide,
    load_importance,
    mean_squares,
    spread,
    square,
)
from quantize.blocks.iq3_cells import N_SCALES, Cells, cells
from quantize.blocks.iq3_search import (
    FIFTEEN,
    N_GROUPS,
    N_STATE,
    TOP,
    N,
    Room,
    Search,
    replace_anew,
    round_groups,
    search_scales,
)
from quantize.blocks.jit import kernel
from quantize.blocks.lanes import ZERO
from quantize.blocks.magnitudes import SIGNED, find_max, fold, multiply
from quantize.blocks.tiles import LANES, aligned_floats
from quantize.tensors import Array, QType

QK_K, N_SUB = 256, 8


class Fit(NamedTuple):
    """What was found for some tiles."""

    scales: Array  # float32 [n_tiles, 8, LANES], not negative
    is_zero: Array  # bool [n_tiles, 8, LANES]: where ggml sees only zeros; scale, codes and signs are 0
    codes: Array  # uint16 [n_tiles, 64, LANES]: indices of entries
    signs: Array  # uint8 [n_tiles, 32, LANES]: bit k is set where weight k of eight is negative


def fit(qtype: QType, search: Search, x: Array, guide: TileGuide | None) -> Fit:
    """Fit the tiles x, float32 [n_tiles, 256 * LANES].

    The weights of the errors are x * x, or importance * sqrt(sigma2 + x * x) with twice the mean of x * x over a block.
    """
    n_tiles = len(x)
    found = Fit(
        np.empty((n_tiles, N_SUB, LANES), np.float32),
        np.empty((n_tiles, N_SUB, LANES), np.bool_),
        np.empty((n_tiles, N_SUB * N_GROUPS, LANES), np.uint16),
        np.empty((n_tiles, QK_K // SIGNED, LANES), np.uint8),
    )
    sigma2 = NOTHING if guide is None else mean_squares(x, 2, QK_K)
    guide = guide or NO_GUIDE
    steps = np.minimum(np.arange(N_SCALES) - search.reach, search.reach).astype(np.float32)
    tops = FIFTEEN + steps * np.float32(0.2)
    _fit(x, guide.importance, guide.n_rows, sigma2, search, tops, cells(qtype), found)
    return found


@kernel
def _room(n_scales: int) -> Room:
    size = N * LANES
    return Room(
        aligned_floats(size),
        aligned_floats(size),
        aligned_floats(size),
        aligned_floats(size),
        aligned_floats(LANES),
        aligned_floats(LANES),
        np.empty((N_GROUPS, n_scales, LANES), np.int16),
        np.empty((N_GROUPS, LANES), np.int32),
        np.empty((N_GROUPS, LANES), np.int32),
        np.empty((N_GROUPS, LANES), np.bool_),
    )


@kernel
def _fit(
    tiles: Array,
    importance: Array,
    n_rows: int,
    sigma2: Array,
    search: Search,
    tops: Array,
    cells: Cells,
    fit: Fit,
) -> None:
    size, n_scales = N * LANES, 2 * search.reach + 1
    room, state = _room(n_scales), aligned_floats(N_STATE)
    for c in range(N_SCALES):
        state[TOP + c] = tops[c]
    for t in range(len(tiles)):
        for j in range(N_SUB):
            x, w = tiles[t][j * size : (j + 1) * size], room.w
            if importance.size:
                load_importance(importance, n_rows, t, j * N, N, w)
                spread(N, x, sigma2[t], w)
            else:
                square(x, w)
            signs = fit.signs[t][j * N // SIGNED : (j + 1) * N // SIGNED]
            for g in range(N // SIGNED):
                part = slice(g * SIGNED * LANES, (g + 1) * SIGNED * LANES)
                fold(x[part], w[part], search.even_signs, room.x[part], signs[g])
            multiply(room.x, w, room.wx, room.root)
            find_max(N, room.x, room.high)
            round_groups(n_scales, tops, room.high, room.x, room.patterns, room.changes)
            search_scales(search, room, cells, state)
            replace_anew(room, cells)
            codes = fit.codes[t][j * N_GROUPS : (j + 1) * N_GROUPS]
            _finish(search.eps, room, fit.scales[t, j], fit.is_zero[t, j], codes, signs)


@kernel
def _finish(eps: np.float32, room: Room, scale: Array, is_zero: Array, codes: Array, signs: Array) -> None:
    """A negative scale turns all signs."""
    for i in range(LANES):
        is_zero[i] = not room.high[i] >= eps
        scale[i] = abs(room.scale[i])
    for k in range(N_GROUPS):
        for i in range(LANES):
            codes[k, i] = np.uint16(room.found[k, i] >> 16)
    for g in range(N // SIGNED):
        for i in range(LANES):
            sign = np.uint8(signs[g, i] ^ np.uint8(255)) if room.scale[i] < ZERO else signs[g, i]
            signs[g, i] = np.uint8(0) if is_zero[i] else sign
