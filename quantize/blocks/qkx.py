"""The search for the scale and the minimum of a sub-block, value = scale * code - min: ggml's make_qkx2/3_quants.

The two are one algorithm; the letters are ggml's, so that both can be laid side by side. What differs is bookkeeping:
ggml copies the codes of each better candidate, here a lane remembers the candidate's `iscale` and `min`, from which its
codes follow (`best_iscale`, `best_min`); where a format rounds anew with the final scales they are hardly ever needed.

make_qkx3, the search with importances, clips candidates before it rounds them since llama.cpp's builds of October 2026;
make_qkx2, and make_qkx3 before, round first, and `nearest_int` wraps numbers of 2^22 and more round. The difference is
in fits that are absurd anyway, where the importances leave two or three weights of a block that hardly differ.
"""

from __future__ import annotations

import numpy as np

from quantize.blocks.jit import inlined, kernel
from quantize.blocks.lanes import ONE, ZERO, clipped_code, nearest_code
from quantize.blocks.tiles import LANES, row
from quantize.tensors import Array

INFINITY, NEGATIVE_ZERO = np.float32(np.inf), np.float32(-0.0)

# rows of the state of a search, [N_STATE * LANES]
SUM_W, SUM_X, MAX, MIN, ISCALE, THIS_SCALE, THIS_MIN, ERROR = (r * LANES for r in range(8))
SCALE, BEST_ERROR, BEST_ISCALE, BEST_MIN = (r * LANES for r in range(8, 12))
N_STATE = 12


@kernel
def make_qkx2(
    n: int,
    nmax: np.float32,
    x: Array,
    w: Array,
    rmin: np.float32,
    rdelta: np.float32,
    nstep: int,
    use_mad: bool | None,
    codes: Array,
    state: Array,
) -> None:
    """Search in all lanes of x [n * LANES], n 16 or 32, with weights w; `codes` [n * LANES] float32 is scratch.

    `use_mad` is None where n is 32: numba leaves out what only other types of an argument reach, so that no kernel is
    compiled for 16 weights where there are 32.

    Leaves in `state` [N_STATE * LANES]: SUM_W; SCALE; MIN (ggml's `the_min` is -MIN, and may be -0); BEST_ISCALE and
    BEST_MIN, for which codes are those of BEST_ISCALE * (x - BEST_MIN), by `nearest_code`.
    """
    _extrema_and_sums(n, x, w, state)
    _first_guess(n, nmax, x, w, use_mad, codes, state)
    for step in range(nstep + 1):
        _candidate(use_mad, nmax, _grid(nmax, rmin, rdelta, step), x, w, codes, state)
        _judge(use_mad, x, w, codes, state)


@kernel
def make_qkx3(
    n: int,
    nmax: np.float32,
    x: Array,
    w: Array,
    rmin: np.float32,
    rdelta: np.float32,
    nstep: int,
    use_mad: bool | None,
    codes: Array,
    state: Array,
) -> None:
    """As `make_qkx2`, with candidates that are clipped first: codes are those of `clipped_code`."""
    _extrema_and_sums(n, x, w, state)
    _first_guess(n, nmax, x, w, use_mad, codes, state)
    for step in range(nstep + 1):
        _clipped_candidate(use_mad, nmax, _grid(nmax, rmin, rdelta, step), x, w, codes, state)
        _judge(use_mad, x, w, codes, state)


@inlined
def _grid(nmax: np.float32, rmin: np.float32, rdelta: np.float32, step: int) -> np.float32:
    return np.float32(np.float32(rmin + np.float32(rdelta * np.float32(step))) + nmax)


@kernel
def _extrema_and_sums(n: int, x: Array, w: Array, state: Array) -> None:
    for i in range(LANES):
        state[MIN + i] = INFINITY
        state[MAX + i] = -INFINITY
        state[SUM_W + i] = NEGATIVE_ZERO  # a sum that begins with the first summand, be it -0
        state[SUM_X + i] = NEGATIVE_ZERO
    for k in range(n):
        xs, ws = row(x, k), row(w, k)
        for i in range(LANES):
            low, high = state[MIN + i], state[MAX + i]
            state[MIN + i] = xs[i] if xs[i] < low else low
            state[MAX + i] = xs[i] if xs[i] > high else high
            state[SUM_W + i] += ws[i]
            state[SUM_X + i] += ws[i] * xs[i]


@kernel
def _first_guess(
    n: int, nmax: np.float32, x: Array, w: Array, use_mad: bool | None, codes: Array, state: Array
) -> None:
    """Begin with the grid from min to max; where they are equal, scale 0 and codes 0 are final."""
    for i in range(LANES):
        low = state[MIN + i]
        low = ZERO if low > ZERO else low
        iscale = nmax / (state[MAX + i] - low)
        state[MIN + i] = low
        state[ISCALE + i] = iscale
        state[THIS_SCALE + i] = ONE / iscale
        state[THIS_MIN + i] = low
        state[ERROR + i] = ZERO
    for k in range(n):
        xs, trial = row(x, k), row(codes, k)
        for i in range(LANES):
            trial[i] = nearest_code(state[ISCALE + i] * (xs[i] - state[MIN + i]), ZERO, nmax)
    _judge(use_mad, x, w, codes, state)
    for i in range(LANES):
        low = state[THIS_MIN + i]
        constant = state[MAX + i] <= low
        state[BEST_ERROR + i] = -INFINITY if constant else state[ERROR + i]
        state[SCALE + i] = ZERO if constant else state[THIS_SCALE + i]
        state[MIN + i] = low
        iscale = state[ISCALE + i]
        state[BEST_ISCALE + i] = (
            ZERO if constant | (iscale == INFINITY) else iscale
        )  # nearest_int makes 0 of infinity
        state[BEST_MIN + i] = ZERO if constant else low


@kernel
def _candidate(
    use_mad: bool | None, nmax: np.float32, grid: np.float32, x: Array, w: Array, codes: Array, state: Array
) -> None:
    """Codes of a candidate, and the scale and min that are best for them."""
    if use_mad is None:
        _fit_candidate(True, nmax, grid, False, x, w, codes, state)
    else:
        _fit_candidate(False, nmax, grid, False, x, w, codes, state)


@kernel
def _clipped_candidate(
    use_mad: bool | None, nmax: np.float32, grid: np.float32, x: Array, w: Array, codes: Array, state: Array
) -> None:
    if use_mad is None:
        _fit_candidate(True, nmax, grid, True, x, w, codes, state)
    else:
        _fit_candidate(False, nmax, grid, True, x, w, codes, state)


@inlined
def _fit_candidate(
    of_32: bool,
    nmax: np.float32,
    grid: np.float32,
    clip_first: bool,
    x: Array,
    w: Array,
    codes: Array,
    state: Array,
) -> None:
    # Calls in a row, since LLVM does not unroll so long a loop, and a loop in a loop over lanes is no vector loop. The
    # caller's booleans are constants.
    for i in range(LANES):
        low = state[MIN + i]
        iscale = grid / (state[MAX + i] - low)
        sums = _add_8(i, nmax, iscale, low, clip_first, x, w, codes, ZERO, ZERO, ZERO)
        sums = _add_8(8 * LANES + i, nmax, iscale, low, clip_first, x, w, codes, *sums)
        if of_32:
            sums = _add_8(16 * LANES + i, nmax, iscale, low, clip_first, x, w, codes, *sums)
            sums = _add_8(24 * LANES + i, nmax, iscale, low, clip_first, x, w, codes, *sums)
        _fit(i, iscale, *sums, state)


@inlined
def _add_8(
    o: int,
    nmax: np.float32,
    iscale: np.float32,
    low: np.float32,
    clip_first: bool,
    x: Array,
    w: Array,
    codes: Array,
    sum_l: np.float32,
    sum_l2: np.float32,
    sum_xl: np.float32,
) -> tuple[np.float32, np.float32, np.float32]:
    """Code eight weights of the lane, the first at o, and add them to the sums."""
    for k in range(8):
        v = x[k * LANES + o]
        wish = iscale * (v - low)
        code = clipped_code(wish, nmax) if clip_first else nearest_code(wish, ZERO, nmax)
        codes[k * LANES + o] = code
        wl = w[k * LANES + o] * code
        sum_l += wl
        sum_l2 += wl * code
        sum_xl += wl * v
    return sum_l, sum_l2, sum_xl


@inlined
def _fit(
    i: int, iscale: np.float32, sum_l: np.float32, sum_l2: np.float32, sum_xl: np.float32, state: Array
) -> None:
    """The scale and the min that are best for the candidate's codes, by least squares; the min is not above 0."""
    sum_w, sum_x = state[SUM_W + i], state[SUM_X + i]
    d = sum_w * sum_l2 - sum_l * sum_l
    this_min = (sum_l2 * sum_x - sum_l * sum_xl) / d
    above = this_min > ZERO
    dividend = sum_xl if above else sum_w * sum_xl - sum_x * sum_l
    divisor = sum_l2 if above else d
    state[ISCALE + i] = iscale
    state[THIS_SCALE + i] = dividend / divisor
    state[THIS_MIN + i] = ZERO if above else this_min
    state[ERROR + i] = ZERO if d > ZERO else INFINITY  # a sum that begins at infinity is never better


@kernel
def _judge(use_mad: bool | None, x: Array, w: Array, codes: Array, state: Array) -> None:
    """The candidate's error; it is kept if it is better."""
    if use_mad is None:
        _judge_squares(True, x, w, codes, state)
    elif use_mad:
        _judge_absolute(x, w, codes, state)
    else:
        _judge_squares(False, x, w, codes, state)


@inlined
def _judge_squares(of_32: bool, x: Array, w: Array, codes: Array, state: Array) -> None:
    for i in range(LANES):
        scale, low = state[THIS_SCALE + i], state[THIS_MIN + i]
        error = _squared_error_8(i, scale, low, x, w, codes, state[ERROR + i])
        error = _squared_error_8(8 * LANES + i, scale, low, x, w, codes, error)
        if of_32:
            error = _squared_error_8(16 * LANES + i, scale, low, x, w, codes, error)
            error = _squared_error_8(24 * LANES + i, scale, low, x, w, codes, error)
        _keep_better(i, error, state)


@kernel
def _judge_absolute(x: Array, w: Array, codes: Array, state: Array) -> None:
    """Of 16 weights, by absolute errors."""
    for i in range(LANES):
        scale, low = state[THIS_SCALE + i], state[THIS_MIN + i]
        error = state[ERROR + i]
        for k in range(16):
            o = k * LANES + i
            error += w[o] * abs(scale * codes[o] + low - x[o])
        _keep_better(i, error, state)


@inlined
def _squared_error_8(
    o: int, scale: np.float32, low: np.float32, x: Array, w: Array, codes: Array, error: np.float32
) -> np.float32:
    for k in range(8):
        diff = scale * codes[k * LANES + o] + low - x[k * LANES + o]
        error += w[k * LANES + o] * (diff * diff)
    return error


@inlined
def _keep_better(i: int, error: np.float32, state: Array) -> None:
    best, low = state[BEST_ERROR + i], state[MIN + i]
    better = error < best
    state[ERROR + i] = error
    state[BEST_ERROR + i] = error if better else best
    state[SCALE + i] = state[THIS_SCALE + i] if better else state[SCALE + i]
    state[MIN + i] = state[THIS_MIN + i] if better else low
    state[BEST_ISCALE + i] = state[ISCALE + i] if better else state[BEST_ISCALE + i]
    state[BEST_MIN + i] = low if better else state[BEST_MIN + i]
