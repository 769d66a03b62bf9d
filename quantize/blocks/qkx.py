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

from quantize.blocks.jit import inlined_leaf, leaf
from quantize.blocks.lanes import ONE, ZERO, clipped_code, nearest_code
from quantize.blocks.tiles import LANES
from quantize.tensors import Array

INFINITY, NEGATIVE_ZERO = np.float32(np.inf), np.float32(-0.0)

# rows of the state of a search, [N_STATE * LANES]
SUM_W, SUM_X, MAX, MIN, ISCALE, THIS_SCALE, THIS_MIN, ERROR = (r * LANES for r in range(8))
SCALE, BEST_ERROR, BEST_ISCALE, BEST_MIN = (r * LANES for r in range(8, 12))
N_STATE = 12

EIGHT = 8 * LANES  # weights of eight rows of a tile


@leaf
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

    Errors are absolute if `use_mad`, which only blocks of 16 know, else squared. It is None where n is 32: numba leaves
    out what only other types of an argument reach, so that no kernel is compiled for 16 weights where there are 32.

    Leaves in `state` [N_STATE * LANES]: SUM_W; SCALE; MIN (ggml's `the_min` is -MIN, and may be -0); BEST_ISCALE and
    BEST_MIN, for which codes are those of BEST_ISCALE * (x - BEST_MIN), by `nearest_code`.
    """
    _extrema_and_sums(n, x, w, state)
    if use_mad is None:
        _search(True, nmax, x, w, rmin, rdelta, nstep, False, False, codes, state)
    else:
        _search(False, nmax, x, w, rmin, rdelta, nstep, use_mad, False, codes, state)


@leaf
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
    if use_mad is None:
        _search(True, nmax, x, w, rmin, rdelta, nstep, False, True, codes, state)
    else:
        _search(False, nmax, x, w, rmin, rdelta, nstep, use_mad, True, codes, state)


@leaf
def _extrema_and_sums(n: int, x: Array, w: Array, state: Array) -> None:
    for i in range(LANES):
        state[MIN + i] = INFINITY
        state[MAX + i] = -INFINITY
        state[SUM_W + i] = NEGATIVE_ZERO  # a sum that begins with the first summand, be it -0
        state[SUM_X + i] = NEGATIVE_ZERO
    for o in range(0, n * LANES, EIGHT):
        _add_extrema(x[o : o + EIGHT], w[o : o + EIGHT], state)


@inlined_leaf
def _add_extrema(x: Array, w: Array, state: Array) -> None:
    for i in range(LANES):
        low, high, sum_w, sum_x = state[MIN + i], state[MAX + i], state[SUM_W + i], state[SUM_X + i]
        for k in range(8):
            v, weight = x[k * LANES + i], w[k * LANES + i]
            low = v if v < low else low
            high = v if v > high else high
            sum_w += weight
            sum_x += weight * v
        state[MIN + i] = low
        state[MAX + i] = high
        state[SUM_W + i] = sum_w
        state[SUM_X + i] = sum_x


@inlined_leaf
def _search(
    of_32: bool,
    nmax: np.float32,
    x: Array,
    w: Array,
    rmin: np.float32,
    rdelta: np.float32,
    nstep: int,
    use_mad: bool,
    clip_first: bool,
    codes: Array,
    state: Array,
) -> None:
    """The grid from min to max, and then the candidates; the codes of each, its scale and min, its error.

    All is compiled into one loop: a call would cost as much as a tenth of the work. The booleans are constants, but for
    `use_mad` of blocks of 16.
    """
    for step in range(-1, nstep + 1):
        if step < 0:
            _first_guess(nmax, state)
        else:
            grid = np.float32(np.float32(rmin + np.float32(rdelta * np.float32(step))) + nmax)
            for i in range(LANES):
                state[ISCALE + i] = grid / (state[MAX + i] - state[MIN + i])
        for o in range(0, 32 * LANES if of_32 else 16 * LANES, EIGHT):
            if clip_first and step >= 0:
                _clipped_codes(nmax, x[o : o + EIGHT], codes[o : o + EIGHT], state)
            else:
                _codes(nmax, x[o : o + EIGHT], codes[o : o + EIGHT], state)
        if step >= 0:
            _fit(of_32, x, w, codes, state)
        if use_mad and not of_32:
            _add_absolute_errors(x, w, codes, state)
        else:
            _add_errors(of_32, x, w, codes, state)
        if step < 0:
            _keep_first(state)
        else:
            _keep_better(state)


@inlined_leaf
def _first_guess(nmax: np.float32, state: Array) -> None:
    for i in range(LANES):
        low = state[MIN + i]
        low = ZERO if low > ZERO else low
        iscale = nmax / (state[MAX + i] - low)
        state[MIN + i] = low
        state[ISCALE + i] = iscale
        state[THIS_SCALE + i] = ONE / iscale
        state[THIS_MIN + i] = low
        state[ERROR + i] = ZERO


@inlined_leaf
def _codes(nmax: np.float32, x: Array, codes: Array, state: Array) -> None:
    for i in range(LANES):
        iscale, low = state[ISCALE + i], state[MIN + i]
        for k in range(8):
            codes[k * LANES + i] = nearest_code(iscale * (x[k * LANES + i] - low), ZERO, nmax)


@inlined_leaf
def _clipped_codes(nmax: np.float32, x: Array, codes: Array, state: Array) -> None:
    for i in range(LANES):
        iscale, low = state[ISCALE + i], state[MIN + i]
        for k in range(8):
            codes[k * LANES + i] = clipped_code(iscale * (x[k * LANES + i] - low), nmax)


@inlined_leaf
def _fit(of_32: bool, x: Array, w: Array, codes: Array, state: Array) -> None:
    """The scale and the min that are best for the candidate's codes, by least squares; the min is not above 0."""
    # Calls in a row, since LLVM does not unroll so long a loop, and a loop in a loop over lanes is no vector loop.
    for i in range(LANES):
        sums = _add_8(i, x, w, codes, ZERO, ZERO, ZERO)
        sums = _add_8(8 * LANES + i, x, w, codes, *sums)
        if of_32:
            sums = _add_8(16 * LANES + i, x, w, codes, *sums)
            sums = _add_8(24 * LANES + i, x, w, codes, *sums)
        sum_l, sum_l2, sum_xl = sums
        sum_w, sum_x = state[SUM_W + i], state[SUM_X + i]
        d = sum_w * sum_l2 - sum_l * sum_l
        this_min = (sum_l2 * sum_x - sum_l * sum_xl) / d
        above = this_min > ZERO
        dividend = sum_xl if above else sum_w * sum_xl - sum_x * sum_l
        divisor = sum_l2 if above else d
        state[THIS_SCALE + i] = dividend / divisor
        state[THIS_MIN + i] = ZERO if above else this_min
        state[ERROR + i] = ZERO if d > ZERO else INFINITY  # a sum that begins at infinity is never better


@inlined_leaf
def _add_8(
    o: int, x: Array, w: Array, codes: Array, sum_l: np.float32, sum_l2: np.float32, sum_xl: np.float32
) -> tuple[np.float32, np.float32, np.float32]:
    """Add eight weights of a lane, the first at o, to its sums."""
    for k in range(8):
        code = codes[k * LANES + o]
        wl = w[k * LANES + o] * code
        sum_l += wl
        sum_l2 += wl * code
        sum_xl += wl * x[k * LANES + o]
    return sum_l, sum_l2, sum_xl


@inlined_leaf
def _add_errors(of_32: bool, x: Array, w: Array, codes: Array, state: Array) -> None:
    for i in range(LANES):
        scale, low = state[THIS_SCALE + i], state[THIS_MIN + i]
        error = _squared_error_8(i, scale, low, x, w, codes, state[ERROR + i])
        error = _squared_error_8(8 * LANES + i, scale, low, x, w, codes, error)
        if of_32:
            error = _squared_error_8(16 * LANES + i, scale, low, x, w, codes, error)
            error = _squared_error_8(24 * LANES + i, scale, low, x, w, codes, error)
        state[ERROR + i] = error


@inlined_leaf
def _squared_error_8(
    o: int, scale: np.float32, low: np.float32, x: Array, w: Array, codes: Array, error: np.float32
) -> np.float32:
    for k in range(8):
        diff = scale * codes[k * LANES + o] + low - x[k * LANES + o]
        error += w[k * LANES + o] * (diff * diff)
    return error


@inlined_leaf
def _add_absolute_errors(x: Array, w: Array, codes: Array, state: Array) -> None:
    for o in range(0, 16 * LANES, EIGHT):
        _add_absolute_8(x[o : o + EIGHT], w[o : o + EIGHT], codes[o : o + EIGHT], state)


@inlined_leaf
def _add_absolute_8(x: Array, w: Array, codes: Array, state: Array) -> None:
    for i in range(LANES):
        scale, low, error = state[THIS_SCALE + i], state[THIS_MIN + i], state[ERROR + i]
        for k in range(8):
            error += w[k * LANES + i] * abs(scale * codes[k * LANES + i] + low - x[k * LANES + i])
        state[ERROR + i] = error


@inlined_leaf
def _keep_first(state: Array) -> None:
    """Where max and min are equal, scale 0 and codes 0 are final."""
    for i in range(LANES):
        low, iscale = state[THIS_MIN + i], state[ISCALE + i]
        constant = state[MAX + i] <= low
        state[BEST_ERROR + i] = -INFINITY if constant else state[ERROR + i]
        state[SCALE + i] = ZERO if constant else state[THIS_SCALE + i]
        state[BEST_ISCALE + i] = (
            ZERO if constant | (iscale == INFINITY) else iscale
        )  # nearest_int makes 0 of infinity
        state[BEST_MIN + i] = ZERO if constant else low


@inlined_leaf
def _keep_better(state: Array) -> None:
    # All is read before anything is written: LLVM 22 was seen to move a load behind the store to its place.
    for i in range(LANES):
        error, best = state[ERROR + i], state[BEST_ERROR + i]
        low, this_min, best_min = state[MIN + i], state[THIS_MIN + i], state[BEST_MIN + i]
        scale, this_scale = state[SCALE + i], state[THIS_SCALE + i]
        iscale, best_iscale = state[ISCALE + i], state[BEST_ISCALE + i]
        better = error < best
        state[BEST_ERROR + i] = error if better else best
        state[SCALE + i] = this_scale if better else scale
        state[BEST_ISCALE + i] = iscale if better else best_iscale
        state[BEST_MIN + i] = low if better else best_min
        state[MIN + i] = this_min if better else low
