"""The search for the scale and the minimum of a sub-block, value = scale * code - min: ggml's make_qkx2/3_quants.

The two are one algorithm; the letters are ggml's, so that both can be laid side by side. What differs is bookkeeping:
ggml copies the codes of each better candidate, here a lane remembers the candidate's `iscale` and `min`, from which its
codes follow (`best_iscale`, `best_min`); where a format rounds anew with the final scales they are hardly ever needed.
"""

from __future__ import annotations

import numpy as np

from quantize.blocks.jit import kernel
from quantize.blocks.lanes import LANES, ONE, ZERO, nearest_code
from quantize.tensors import Array

STEP = 8  # weights of a lane per turn of the lane loop: sums stay in registers meanwhile, and LLVM unrolls it

# rows of the state of a search, [N_STATE * LANES]
SUM_W, SUM_X, MAX, MIN, ISCALE = 0 * LANES, 1 * LANES, 2 * LANES, 3 * LANES, 4 * LANES
SUM_L, SUM_L2, SUM_XL = 5 * LANES, 6 * LANES, 7 * LANES
THIS_SCALE, THIS_MIN, ERROR = 8 * LANES, 9 * LANES, 10 * LANES
SCALE, BEST_ERROR, BEST_ISCALE, BEST_MIN = 11 * LANES, 12 * LANES, 13 * LANES, 14 * LANES
N_STATE = 15

INFINITY = np.float32(np.inf)


@kernel
def make_qkx(
    n: int,
    nmax: np.float32,
    x: Array,
    w: Array,
    rmin: np.float32,
    rdelta: np.float32,
    nstep: int,
    use_mad: bool,
    codes: Array,
    state: Array,
) -> None:
    """Search in all lanes of x [n * LANES] with weights w; `codes` [n * LANES] float32 is scratch.

    Leaves in `state` [N_STATE * LANES]: SUM_W; SCALE; MIN (ggml's `the_min` is -MIN, and may be -0); BEST_ISCALE and
    BEST_MIN, for which codes are nearest_code(BEST_ISCALE * (x - BEST_MIN), 0, nmax).
    """
    _extrema_and_sums(n, x, w, state)
    _first_guess(n, nmax, x, w, use_mad, codes, state)
    for step in range(nstep + 1):
        grid = np.float32(np.float32(rmin + np.float32(rdelta * np.float32(step))) + nmax)
        _candidate_sums(n, nmax, grid, x, w, codes, state)
        _candidate_fit(state)
        if use_mad:
            _absolute_errors(n, x, w, codes, state)
        else:
            _squared_errors(n, x, w, codes, state)
        _keep_better(state)


@kernel
def rows(a: Array, k: int) -> Array:
    """STEP rows of lanes from row k on. LLVM sees that an index into them cannot be negative, and need not wrap it."""
    return a[k * LANES : (k + STEP) * LANES]


@kernel
def _extrema_and_sums(n: int, x: Array, w: Array, state: Array) -> None:
    for i in range(LANES):
        state[MIN + i] = x[i]
        state[MAX + i] = x[i]
        state[SUM_W + i] = w[i]
        state[SUM_X + i] = w[i] * x[i]
    for k in range(1, n):
        for i in range(LANES):
            v, wk = x[k * LANES + i], w[k * LANES + i]
            low, high = state[MIN + i], state[MAX + i]
            state[MIN + i] = v if v < low else low
            state[MAX + i] = v if v > high else high
            state[SUM_W + i] += wk
            state[SUM_X + i] += wk * v
    for i in range(LANES):
        low = state[MIN + i]
        state[MIN + i] = ZERO if low > ZERO else low


@kernel
def _first_guess(
    n: int, nmax: np.float32, x: Array, w: Array, use_mad: bool, codes: Array, state: Array
) -> None:
    """Begin with the grid from min to max; where they are equal, scale 0 and codes 0 are final."""
    for i in range(LANES):
        low, high = state[MIN + i], state[MAX + i]
        iscale = nmax / (high - low)
        state[ISCALE + i] = iscale
        state[THIS_SCALE + i] = ONE / iscale
        state[THIS_MIN + i] = low
        state[ERROR + i] = ZERO
    _candidate_codes(n, nmax, x, codes, state)
    if use_mad:
        _absolute_errors(n, x, w, codes, state)
    else:
        _squared_errors(n, x, w, codes, state)
    for i in range(LANES):
        low = state[MIN + i]
        constant = state[MAX + i] <= low
        state[SCALE + i] = ZERO if constant else state[THIS_SCALE + i]
        state[BEST_ERROR + i] = -INFINITY if constant else state[ERROR + i]
        state[BEST_ISCALE + i] = ZERO if constant else state[ISCALE + i]
        state[BEST_MIN + i] = ZERO if constant else low


@kernel
def _candidate_codes(n: int, nmax: np.float32, x: Array, codes: Array, state: Array) -> None:
    for k in range(n):
        for i in range(LANES):
            codes[k * LANES + i] = nearest_code(
                state[ISCALE + i] * (x[k * LANES + i] - state[MIN + i]), ZERO, nmax
            )


@kernel
def _candidate_sums(
    n: int, nmax: np.float32, grid: np.float32, x: Array, w: Array, codes: Array, state: Array
) -> None:
    """Codes of the candidate, and their sums."""
    for i in range(LANES):
        state[ISCALE + i] = grid / (state[MAX + i] - state[MIN + i])
        state[SUM_L + i] = ZERO
        state[SUM_L2 + i] = ZERO
        state[SUM_XL + i] = ZERO
    for k0 in range(0, n, STEP):
        x8, w8, codes8 = rows(x, k0), rows(w, k0), rows(codes, k0)
        for i in range(LANES):
            iscale, low = state[ISCALE + i], state[MIN + i]
            sum_l, sum_l2, sum_xl = state[SUM_L + i], state[SUM_L2 + i], state[SUM_XL + i]
            for k in range(STEP):
                o = k * LANES + i
                v = x8[o]
                code = nearest_code(iscale * (v - low), ZERO, nmax)
                codes8[o] = code
                wl = w8[o] * code
                sum_l += wl
                sum_l2 += wl * code
                sum_xl += wl * v
            state[SUM_L + i] = sum_l
            state[SUM_L2 + i] = sum_l2
            state[SUM_XL + i] = sum_xl


@kernel
def _candidate_fit(state: Array) -> None:
    """The scale and the min that are best for the candidate's codes, by least squares."""
    for i in range(LANES):
        sum_w, sum_x = state[SUM_W + i], state[SUM_X + i]
        sum_l, sum_l2, sum_xl = state[SUM_L + i], state[SUM_L2 + i], state[SUM_XL + i]
        d = sum_w * sum_l2 - sum_l * sum_l
        this_scale = (sum_w * sum_xl - sum_x * sum_l) / d
        this_min = (sum_l2 * sum_x - sum_l * sum_xl) / d
        through_zero = sum_xl / sum_l2
        state[THIS_SCALE + i] = through_zero if this_min > ZERO else this_scale
        state[THIS_MIN + i] = ZERO if this_min > ZERO else this_min
        state[ERROR + i] = ZERO if d > ZERO else INFINITY  # a sum that begins at infinity is never better


@kernel
def _squared_errors(n: int, x: Array, w: Array, codes: Array, state: Array) -> None:
    for k0 in range(0, n, STEP):
        x8, w8, codes8 = rows(x, k0), rows(w, k0), rows(codes, k0)
        for i in range(LANES):
            this_scale, this_min, error = state[THIS_SCALE + i], state[THIS_MIN + i], state[ERROR + i]
            for k in range(STEP):
                o = k * LANES + i
                diff = this_scale * codes8[o] + this_min - x8[o]
                error += w8[o] * (diff * diff)
            state[ERROR + i] = error


@kernel
def _absolute_errors(n: int, x: Array, w: Array, codes: Array, state: Array) -> None:
    for k0 in range(0, n, STEP):
        x8, w8, codes8 = rows(x, k0), rows(w, k0), rows(codes, k0)
        for i in range(LANES):
            this_scale, this_min, error = state[THIS_SCALE + i], state[THIS_MIN + i], state[ERROR + i]
            for k in range(STEP):
                o = k * LANES + i
                error += w8[o] * abs(this_scale * codes8[o] + this_min - x8[o])
            state[ERROR + i] = error


@kernel
def _keep_better(state: Array) -> None:
    for i in range(LANES):
        error, best, low = state[ERROR + i], state[BEST_ERROR + i], state[MIN + i]
        better = error < best
        state[BEST_ERROR + i] = error if better else best
        state[SCALE + i] = state[THIS_SCALE + i] if better else state[SCALE + i]
        state[MIN + i] = state[THIS_MIN + i] if better else low
        state[BEST_ISCALE + i] = state[ISCALE + i] if better else state[BEST_ISCALE + i]
        state[BEST_MIN + i] = low if better else state[BEST_MIN + i]
