"""The search for the scale of non-negative values, value = scale * code: ggml's make_qp_quants.

K-quants with importances code the scales and the mins of a super-block's sub-blocks with it.
"""

from __future__ import annotations

import numpy as np

from quantize.blocks.jit import kernel
from quantize.blocks.lanes import ONE, ZERO, as_byte, nearest_int
from quantize.blocks.tiles import LANES
from quantize.tensors import Array

EPS = np.float32(1e-15)  # ggml's GROUP_MAX_EPS

MAX, ISCALE, MSE, BEST_MSE, SUM_LX, SUM_L2, CHANGED = (row * LANES for row in range(7))
N_STATE = 7


@kernel
def make_qp(n: int, nmax: np.float32, x: Array, w: Array, codes: Array, scale: Array, state: Array) -> None:
    """Code x [n * LANES] with weights w [n * LANES]: codes [n * LANES] float32 0..255, scale [LANES].

    `state` [N_STATE * LANES] is scratch. Codes are at most nmax, but as in ggml they pass through a uint8_t.
    """
    for i in range(LANES):
        state[MAX + i] = ZERO
    for k in range(n):
        for i in range(LANES):
            high, v = state[MAX + i], x[k * LANES + i]
            state[MAX + i] = high if high > v else v
    for step in range(9):  # the plain grid, then -4..4 without 0
        offset = np.float32(step - 5 if step < 5 else step - 4)
        _try_grid(n, nmax, offset, step == 0, x, w, state)
    _first_codes(n, nmax, x, w, codes, state)
    for _ in range(5):
        if _improve_codes(n, nmax, x, w, codes, state) == 0:
            break
    for i in range(LANES):
        sum_lx, sum_l2 = state[SUM_LX + i], state[SUM_L2 + i]
        coded = (sum_l2 > ZERO) & ~(state[MAX + i] < EPS)
        scale[i] = sum_lx / sum_l2 if coded else ZERO
    for k in range(n):
        for i in range(LANES):
            codes[k * LANES + i] = ZERO if state[MAX + i] < EPS else codes[k * LANES + i]


@kernel
def _try_grid(
    n: int, nmax: np.float32, offset: np.float32, first: bool, x: Array, w: Array, state: Array
) -> None:
    """Measure a grid, and keep it if it is the first or better."""
    for i in range(LANES):
        state[MSE + i] = ZERO
    shift = ZERO if first else np.float32(np.float32(0.1) * offset)
    for k in range(n):
        for i in range(LANES):
            iscale = (shift + nmax) / state[MAX + i]
            v = x[k * LANES + i]
            code = nearest_int(iscale * v)
            # the first grid goes through a uint8_t unclipped, the others are clipped as integers
            code = as_byte(code) if first else (nmax if nmax < code else code)
            diff = v - (ONE / iscale) * code
            state[MSE + i] += w[k * LANES + i] * diff * diff
    for i in range(LANES):
        iscale = (shift + nmax) / state[MAX + i]
        mse = state[MSE + i]
        better = first | (mse < state[BEST_MSE + i])
        state[BEST_MSE + i] = mse if better else state[BEST_MSE + i]
        state[ISCALE + i] = iscale if better else state[ISCALE + i]


@kernel
def _first_codes(n: int, nmax: np.float32, x: Array, w: Array, codes: Array, state: Array) -> None:
    for i in range(LANES):
        state[SUM_LX + i] = ZERO
        state[SUM_L2 + i] = ZERO
    for k in range(n):
        for i in range(LANES):
            o = k * LANES + i
            code = nearest_int(state[ISCALE + i] * x[o])
            code = nmax if nmax < code else code
            codes[o] = as_byte(code)
            state[SUM_LX + i] += w[o] * x[o] * code
            state[SUM_L2 + i] += w[o] * code * code


@kernel
def _improve_codes(n: int, nmax: np.float32, x: Array, w: Array, codes: Array, state: Array) -> int:
    """One pass of coordinate descent; returns how often a code changed (a lane without change stays as it is)."""
    for i in range(LANES):
        state[CHANGED + i] = ZERO
    for k in range(n):
        for i in range(LANES):
            o = k * LANES + i
            v, wk, code = x[o], w[o], codes[o]
            sum_lx, sum_l2 = state[SUM_LX + i], state[SUM_L2 + i]
            wv = wk * v
            slx = sum_lx - wv * code
            sl2 = sum_l2 - wk * code * code
            new_code = nearest_int(v * sl2 / slx)
            new_code = nmax if nmax < new_code else new_code
            new_slx = slx + wv * new_code
            new_sl2 = sl2 + wk * new_code * new_code
            better = (slx > ZERO) & (sl2 > ZERO) & (new_code != code)
            better &= new_slx * new_slx * sum_l2 > sum_lx * sum_lx * new_sl2
            codes[o] = as_byte(new_code) if better else code
            state[SUM_LX + i] = new_slx if better else sum_lx
            state[SUM_L2 + i] = new_sl2 if better else sum_l2
            state[CHANGED + i] += ONE if better else ZERO
    changed = 0
    for i in range(LANES):
        changed += state[CHANGED + i] > ZERO
    return changed
