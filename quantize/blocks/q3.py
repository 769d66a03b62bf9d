"""The search for the scale of a sub-block by coordinate descent, value = scale * code: ggml's make_q3_quants (do_rmse).

Q3_K without importances uses it, with codes -4..3 and the weights x*x. Passes over a sub-block's codes go on until one
changes none, five at most. Most sub-blocks are done from the start: they are told apart without division, and only the
others (about a quarter of them) are put side by side and take part in the passes.
"""

from __future__ import annotations

import numpy as np

from quantize.blocks.error_weights import square
from quantize.blocks.jit import kernel
from quantize.blocks.lanes import ONE, ZERO, clipped_small, nearest_code
from quantize.blocks.qx import EPS, ISCALE, LARGEST, SUM_L2, SUM_LX, find_largest
from quantize.blocks.qx import N_STATE as N_QX_STATE
from quantize.blocks.tiles import LANES, aligned_floats, row
from quantize.tensors import Array

N_KEPT = max(LARGEST, SUM_LX, SUM_L2) // LANES + 1  # rows of a state that outlive the search
CHANGED = N_QX_STATE * LANES
N_STATE = N_QX_STATE + 1
N, STEP, WIDE_STEP, PASSES = 16, 2, 8, 5
LOW, HIGH = np.float32(-4), np.float32(3)
NO_DOUBT, CLIPPED, SAFE = np.float32(0.49), np.float32(1e6), np.float32(1e-30)


@kernel
def make_q3(x: Array, scales: Array, codes: Array) -> None:
    """Fit the sub-blocks of a tile x [n_sub * N * LANES].

    Gives scales, float32 [n_sub, LANES], and codes 0..7, uint8 as x; where ggml sees only zeros, both are 0.
    """
    size, n_sub = N * LANES, len(scales)
    trial, kept = (
        aligned_floats(x.size),
        aligned_floats(n_sub * N_KEPT * LANES).reshape(n_sub, N_KEPT * LANES),
    )
    w, wx, state = aligned_floats(size), aligned_floats(size), aligned_floats(N_STATE * LANES)
    # the sub-blocks that are not done, side by side, and from which lane each comes
    open_x, open_codes = aligned_floats(size), aligned_floats(size)
    open_state = aligned_floats(N_STATE * LANES)
    origin = np.empty(LANES, np.int64)
    open_x[:] = open_codes[:] = open_state[:] = ZERO
    n_open = 0
    for j in range(n_sub):
        xs, trial_j = x[j * size : (j + 1) * size], trial[j * size : (j + 1) * size]
        _weigh(xs, w, wx)
        find_largest(N, xs, state)
        _first_codes(xs, w, wx, trial_j, state)
        _doubt(xs, w, wx, trial_j, state)
        kept[j] = state[: N_KEPT * LANES]
        for i in range(LANES):
            if state[CHANGED + i] != ZERO:
                origin[n_open] = j * LANES + i
                _copy_lane(xs, i, open_x, n_open)
                _copy_lane(trial_j, i, open_codes, n_open)
                open_state[SUM_LX + n_open] = state[SUM_LX + i]
                open_state[SUM_L2 + n_open] = state[SUM_L2 + i]
                n_open += 1
            if n_open == LANES:
                _improve(open_x, w, wx, open_codes, open_state)
                _return_lanes(n_open, origin, open_codes, open_state, trial, kept)
                n_open = 0
    if n_open:  # the lanes beyond hold zeros or what was there before: their results are not used
        _improve(open_x, w, wx, open_codes, open_state)
        _return_lanes(n_open, origin, open_codes, open_state, trial, kept)
    for j in range(n_sub):
        _finish(kept[j], scales[j])
        for k in range(j * N, (j + 1) * N):
            _store_codes(row(trial, k), kept[j], row(codes, k))


@kernel
def _weigh(x: Array, w: Array, wx: Array) -> None:
    square(x, w)
    for k in range(N * LANES):
        wx[k] = w[k] * x[k]


@kernel
def _first_codes(x: Array, w: Array, wx: Array, codes: Array, state: Array) -> None:
    for i in range(LANES):
        state[ISCALE + i] = LOW / state[LARGEST + i]
        state[SUM_LX + i] = ZERO
        state[SUM_L2 + i] = ZERO
    for k in range(0, N, WIDE_STEP):
        part = slice(k * LANES, (k + WIDE_STEP) * LANES)
        _add_first_codes(x[part], w[part], wx[part], codes[part], state)


@kernel
def _add_first_codes(x: Array, w: Array, wx: Array, codes: Array, state: Array) -> None:
    for i in range(LANES):
        iscale, sum_lx, sum_l2 = state[ISCALE + i], state[SUM_LX + i], state[SUM_L2 + i]
        for k in range(WIDE_STEP):
            o = k * LANES + i
            code = clipped_small(iscale * x[o], LOW, HIGH)
            codes[o] = code
            sum_lx += wx[o] * code
            sum_l2 += w[o] * code * code
        state[SUM_LX + i] = sum_lx
        state[SUM_L2 + i] = sum_l2


@kernel
def _doubt(x: Array, w: Array, wx: Array, codes: Array, state: Array) -> None:
    """CHANGED where a first pass might change a code.

    It does not if for all weights slx is not positive (as in half of all sub-blocks, those whose largest weight is), or
    x * sl2 / slx, whose nearest integer would be the new code, is safely within half of the old one, or beyond it where
    the code is the last (but not so far that nearest_int wraps round). NaN is in doubt, and so are sums near the
    subnormal floats, for which rounding is coarse.
    """
    for i in range(LANES):
        state[CHANGED + i] = ZERO
    for k in range(0, N, WIDE_STEP):
        part = slice(k * LANES, (k + WIDE_STEP) * LANES)
        _add_doubt(x[part], w[part], wx[part], codes[part], state)


@kernel
def _add_doubt(x: Array, w: Array, wx: Array, codes: Array, state: Array) -> None:
    for i in range(LANES):
        sum_lx, sum_l2, changed = state[SUM_LX + i], state[SUM_L2 + i], state[CHANGED + i]
        for k in range(WIDE_STEP):
            o = k * LANES + i
            code = codes[o]
            slx = sum_lx - wx[o] * code
            sl2 = sum_l2 - w[o] * code * code
            off = x[o] * sl2 - code * slx
            above = NO_DOUBT if code < HIGH else CLIPPED
            below = NO_DOUBT if code > LOW else CLIPPED
            sure = (off < above * slx) & (-off < below * slx) & (slx > SAFE) | (slx <= ZERO)
            changed = changed if sure else ONE
        state[CHANGED + i] = ZERO if abs(state[LARGEST + i]) < EPS else changed


@kernel
def _copy_lane(source: Array, i: int, target: Array, n: int) -> None:
    for k in range(N):
        target[k * LANES + n] = source[k * LANES + i]


@kernel
def _return_lanes(
    n: int, origin: Array, open_codes: Array, open_state: Array, codes: Array, kept: Array
) -> None:
    for i in range(n):
        j, lane = origin[i] // LANES, origin[i] % LANES
        _copy_lane(open_codes, i, codes[j * N * LANES : (j + 1) * N * LANES], lane)
        kept[j, SUM_LX + lane] = open_state[SUM_LX + i]
        kept[j, SUM_L2 + lane] = open_state[SUM_L2 + i]


@kernel
def _improve(x: Array, w: Array, wx: Array, codes: Array, state: Array) -> None:
    _weigh(x, w, wx)
    for _ in range(PASSES):
        for i in range(LANES):
            state[CHANGED + i] = ZERO
        for k in range(0, N, STEP):
            part = slice(k * LANES, (k + STEP) * LANES)
            _add_improved(x[part], w[part], wx[part], codes[part], state)
        changed = ZERO
        for i in range(LANES):
            changed += state[CHANGED + i]
        if changed == ZERO:  # a lane without change would not change in further passes either
            break


@kernel
def _add_improved(x: Array, w: Array, wx: Array, codes: Array, state: Array) -> None:
    """Part of a pass: give each weight in turn the code that is best while all others stay."""
    for i in range(LANES):
        sum_lx, sum_l2, changed = state[SUM_LX + i], state[SUM_L2 + i], state[CHANGED + i]
        for k in range(STEP):
            o = k * LANES + i
            v, weight, weight_x, code = x[o], w[o], wx[o], codes[o]
            slx = sum_lx - weight_x * code
            sl2 = sum_l2 - weight * code * code
            new = nearest_code(v * sl2 / slx, LOW, HIGH)
            new_slx = slx + weight_x * new
            new_sl2 = sl2 + weight * new * new
            better = (slx > ZERO) & (new != code) & (new_sl2 > ZERO)
            better &= new_slx * new_slx * sum_l2 > sum_lx * sum_lx * new_sl2
            codes[o] = new if better else code
            sum_lx = new_slx if better else sum_lx
            sum_l2 = new_sl2 if better else sum_l2
            changed = ONE if better else changed
        state[SUM_LX + i] = sum_lx
        state[SUM_L2 + i] = sum_l2
        state[CHANGED + i] = changed


@kernel
def _finish(kept: Array, scale: Array) -> None:
    for i in range(LANES):
        sum_lx, sum_l2 = kept[SUM_LX + i], kept[SUM_L2 + i]
        ratio = sum_lx / sum_l2
        scale[i] = ratio if (sum_l2 > ZERO) & (abs(kept[LARGEST + i]) >= EPS) else ZERO


@kernel
def _store_codes(trial: Array, kept: Array, codes: Array) -> None:
    for i in range(LANES):
        code = np.int32(trial[i] - LOW)
        codes[i] = np.uint8(np.int32(0) if abs(kept[LARGEST + i]) < EPS else code)
