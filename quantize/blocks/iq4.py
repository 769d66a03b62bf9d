"""The fit and the rounding of IQ4_NL and IQ4_XS, whose codes are indices of a table: value = scale * TABLE[code].

Source: ggml-quants.c, quantize_row_iq4_nl_impl (with ntry = 7, as files are quantized) and best_index_int8.
"""

from __future__ import annotations

from itertools import pairwise

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
from quantize.blocks.jit import kernel
from quantize.blocks.lanes import ONE, ZERO
from quantize.blocks.qx import (
    BEST,
    BEST_ISCALE,
    EPS,
    ISCALE,
    LARGEST,
    N_STATE,
    SCALE,
    SUM_L2,
    SUM_LX,
    find_largest,
    keep_better,
)
from quantize.blocks.tiles import LANES, aligned_floats, row
from quantize.tensors import Array

INTEGERS = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)  # kvalues_iq4nl
TABLE = tuple(np.float32(value) for value in INTEGERS)
MIDDLES = tuple(np.float32((a + b) / 2) for a, b in pairwise(INTEGERS))
CODES = tuple(np.int32(code) for code in range(16))
VALUES = np.array(INTEGERS, np.float32)  # TABLE for look-ups: numba would copy a tuple before each
N, STEP = 32, 8  # weights of a sub-block; of a lane per turn of the lane loop


@kernel
def nearest_value(y: np.float32) -> np.float32:
    """The entry of TABLE nearest to y, the upper of two; the last for NaN, where ggml's search ends as well.

    ggml compares y - lower < upper - y. Near the middle both differences are exact, elsewhere they are monotonous, so
    that this is y < middle.
    """
    entry = TABLE[15]
    for above in range(14, -1, -1):
        entry = TABLE[above] if y < MIDDLES[above] else entry
    return entry


@kernel
def nearest_index(y: np.float32) -> np.int32:
    """The index in TABLE of `nearest_value`."""
    index = CODES[15]
    for above in range(14, -1, -1):
        index = CODES[above] if y < MIDDLES[above] else index
    return index


def fit_scales(x: Array, guide: TileGuide | None) -> Array:
    """The scale of each sub-block of the tiles x [n_tiles, n_sub * 32 * LANES]: float32 [n_tiles, n_sub, LANES].

    Weights of the errors are x*x, or importance * sqrt(sigma2 + x*x) with twice the mean of x*x over the block.
    """
    n_sub = x.shape[1] // (N * LANES)
    scales = np.empty((len(x), n_sub, LANES), np.float32)
    sigma2 = NOTHING if guide is None else mean_squares(x, 2 / (n_sub * N), 1)
    guide = guide or NO_GUIDE
    _fit(x, guide.importance, guide.n_rows, sigma2, scales)
    return scales


@kernel
def _fit(x: Array, importance: Array, n_rows: int, sigma2: Array, scales: Array) -> None:
    n_tiles, n_sub, _ = scales.shape
    w = aligned_floats(N * LANES)
    state = aligned_floats(N_STATE * LANES)
    for t in range(n_tiles):
        for j in range(n_sub):
            sub_block = x[t][j * N * LANES : (j + 1) * N * LANES]
            if importance.size:
                load_importance(importance, n_rows, t, j * N, N, w)
                spread(N, sub_block, sigma2[t], w)
            else:
                square(sub_block, w)
            find_largest(N, sub_block, state)
            make_iq4(sub_block, w, state)
            for i in range(LANES):
                scales[t, j, i] = state[SCALE + i]


@kernel
def make_iq4(x: Array, w: Array, state: Array) -> None:
    """Search in all lanes of x [N * LANES] with weights w: takes LARGEST from `state`, leaves SCALE there."""
    for i in range(LANES):
        state[ISCALE + i] = ONE / (-state[LARGEST + i] / TABLE[0])
    _candidate_sums(x, w, state)
    for i in range(LANES):
        sum_lx, sum_l2, iscale = state[SUM_LX + i], state[SUM_L2 + i], state[ISCALE + i]
        ratio = sum_lx / sum_l2
        scale = ratio if sum_l2 > ZERO else ZERO
        state[SCALE + i] = scale
        state[BEST + i] = scale * sum_lx
        state[BEST_ISCALE + i] = iscale
    for step in range(-7, 8):
        for i in range(LANES):
            state[ISCALE + i] = (np.float32(step) + TABLE[0]) / state[LARGEST + i]
        _candidate_sums(x, w, state)
        keep_better(state)
    for i in range(LANES):
        scale = state[SCALE + i]
        state[SCALE + i] = ZERO if abs(state[LARGEST + i]) < EPS else scale


@kernel
def _candidate_sums(x: Array, w: Array, state: Array) -> None:
    """The two sums of the candidate ISCALE."""
    for i in range(LANES):
        state[SUM_LX + i] = ZERO
        state[SUM_L2 + i] = ZERO
    for k in range(0, N, STEP):
        part = slice(k * LANES, (k + STEP) * LANES)
        _add_candidate_sums(x[part], w[part], state)


@kernel
def _add_candidate_sums(x: Array, w: Array, state: Array) -> None:
    for i in range(LANES):
        iscale, sum_lx, sum_l2 = state[ISCALE + i], state[SUM_LX + i], state[SUM_L2 + i]
        for k in range(STEP):
            v = x[k * LANES + i]
            q = nearest_value(iscale * v)
            wq = w[k * LANES + i] * q
            sum_lx += wq * v
            sum_l2 += wq * q
        state[SUM_LX + i] = sum_lx
        state[SUM_L2 + i] = sum_l2


def round_to_table(x: Array, inverses: Array) -> Array:
    """Codes, uint8 as the tiles x, of the table's entries nearest to x * inverse, inverses [n_tiles, n_sub, LANES]."""
    codes = np.empty(x.shape, np.uint8)
    _round_to_table(x, inverses, codes)
    return codes


@kernel
def _round_to_table(x: Array, inverses: Array, codes: Array) -> None:
    n_tiles, n_sub, _ = inverses.shape
    for t in range(n_tiles):
        for j in range(n_sub):
            inverse = inverses[t, j]
            for k in range(j * N, (j + 1) * N):
                xs, code = row(x[t], k), row(codes[t], k)
                for i in range(LANES):
                    code[i] = np.uint8(nearest_index(inverse[i] * xs[i]))
