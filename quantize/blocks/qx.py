"""The search for the scale of a sub-block, value = scale * code with signed codes: ggml's make_qx_quants.

All its 19 candidates depend on the largest weight alone, and only their sums decide. ggml copies the codes of each
better candidate; here a lane remembers the candidate's `iscale`: its codes are the nearest to iscale * x.
"""

from __future__ import annotations

import numpy as np

from quantize.blocks.jit import kernel
from quantize.blocks.lanes import ONE, ZERO, clipped_small
from quantize.blocks.tiles import LANES
from quantize.tensors import Array

EPS = np.float32(1e-15)  # ggml's GROUP_MAX_EPS
STEP = 16  # weights of a lane per turn of the lane loop: LLVM unrolls it, and keeps the sums in registers

# rows of the state of a search, [N_STATE * LANES]
LARGEST, ISCALE, SUM_LX, SUM_L2, SCALE, BEST, BEST_ISCALE = (row * LANES for row in range(7))
N_STATE = 7


@kernel
def find_largest(n: int, x: Array, state: Array) -> None:
    """LARGEST in each lane of x [n * LANES]: the value, with its sign, of the first largest magnitude."""
    for i in range(LANES):
        state[LARGEST + i] = ZERO
    for k in range(n):
        for i in range(LANES):
            v, top = x[k * LANES + i], state[LARGEST + i]
            state[LARGEST + i] = v if abs(v) > abs(top) else top


@kernel
def make_qx(n: int, nmax: np.float32, x: Array, w: Array, wx: Array, state: Array) -> None:
    """Search in all lanes of x [n * LANES], finite, with weights w and wx = w * x; n is a multiple of 16.

    Takes LARGEST from `state` [N_STATE * LANES]; leaves SCALE and BEST_ISCALE, both 0 where ggml sees only zeros.
    """
    _candidate_sums(n, nmax, ZERO, x, w, wx, state)
    for i in range(LANES):
        sum_lx, sum_l2 = state[SUM_LX + i], state[SUM_L2 + i]
        ratio = sum_lx / sum_l2
        scale = ratio if sum_l2 != ZERO else ZERO
        state[SCALE + i] = scale
        state[BEST + i] = scale * sum_lx
        state[BEST_ISCALE + i] = state[ISCALE + i]
    for step in range(-9, 10):
        if step == 0:
            continue
        _candidate_sums(n, nmax, np.float32(0.1) * np.float32(step), x, w, wx, state)
        keep_better(state)
    for i in range(LANES):
        scale, best_iscale = state[SCALE + i], state[BEST_ISCALE + i]
        zero = abs(state[LARGEST + i]) < EPS
        state[SCALE + i] = ZERO if zero else scale
        state[BEST_ISCALE + i] = ZERO if zero else best_iscale


@kernel
def _candidate_sums(
    n: int, nmax: np.float32, more: np.float32, x: Array, w: Array, wx: Array, state: Array
) -> None:
    """The two sums of a candidate, whose grid maps the largest weight to -(nmax + more).

    |ISCALE * x| is not much more than nmax, so `clipped_small` will do.
    """
    low, high, grid = -nmax, nmax - ONE, -(nmax + more)
    for i in range(LANES):
        state[ISCALE + i] = grid / state[LARGEST + i]
        state[SUM_LX + i] = ZERO
        state[SUM_L2 + i] = ZERO
    for k in range(0, n, STEP):
        part = slice(k * LANES, (k + STEP) * LANES)
        _add_candidate_sums(low, high, x[part], w[part], wx[part], state)


@kernel
def _add_candidate_sums(
    low: np.float32, high: np.float32, x: Array, w: Array, wx: Array, state: Array
) -> None:
    """The part of STEP weights: offsets are constants here, or LLVM could not tell the arrays apart."""
    for i in range(LANES):
        iscale, sum_lx, sum_l2 = state[ISCALE + i], state[SUM_LX + i], state[SUM_L2 + i]
        for k in range(STEP):
            o = k * LANES + i
            code = clipped_small(iscale * x[o], low, high)
            sum_lx += wx[o] * code
            sum_l2 += w[o] * code * code
        state[SUM_LX + i] = sum_lx
        state[SUM_L2 + i] = sum_l2


@kernel
def keep_better(state: Array) -> None:
    """Take over the candidate in the lanes in which it is better than all before."""
    for i in range(LANES):
        sum_lx, sum_l2, iscale = state[SUM_LX + i], state[SUM_L2 + i], state[ISCALE + i]
        best, best_scale, best_iscale = state[BEST + i], state[SCALE + i], state[BEST_ISCALE + i]
        scale = sum_lx / sum_l2
        this = scale * sum_lx
        better = (sum_l2 > ZERO) & (sum_lx * sum_lx > best * sum_l2)
        state[SCALE + i] = scale if better else best_scale
        state[BEST + i] = this if better else best
        state[BEST_ISCALE + i] = iscale if better else best_iscale
