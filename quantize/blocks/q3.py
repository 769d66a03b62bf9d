"""The search for the scale of a sub-block by coordinate descent, value = scale * code: ggml's make_q3_quants (do_rmse).

Q3_K without importances uses it, with codes -4..3.
"""

from __future__ import annotations

import numpy as np

from quantize.blocks.jit import kernel
from quantize.blocks.lanes import LANES, MAGIC, ONE, ZERO, nearest_code
from quantize.blocks.qx import EPS, ISCALE, LARGEST, SCALE, SUM_L2, SUM_LX
from quantize.blocks.qx import N_STATE as N_QX_STATE
from quantize.tensors import Array

CHANGED = N_QX_STATE * LANES
N_STATE = N_QX_STATE + 1
N, STEP, PASSES = 16, 2, 5
LOW, HIGH = np.float32(-4), np.float32(3)


@kernel
def make_q3(x: Array, w: Array, wx: Array, codes: Array, state: Array) -> None:
    """Search in all lanes of x [N * LANES] with weights w and wx = w * x.

    Takes LARGEST from `state` [N_STATE * LANES]; leaves SCALE there, and codes 0..7, float32 [N * LANES]: ggml's
    codes are all 0 where it sees only zeros.
    """
    _first_codes(x, w, wx, codes, state)
    for _ in range(PASSES):
        for i in range(LANES):
            state[CHANGED + i] = ZERO
        for k in range(0, N, STEP):
            part = slice(k * LANES, (k + STEP) * LANES)
            _improve(x[part], w[part], wx[part], codes[part], state)
        changed = ZERO
        for i in range(LANES):
            changed += state[CHANGED + i]
        if changed == ZERO:  # a lane without change would not change in further passes either
            break
    for i in range(LANES):
        sum_lx, sum_l2 = state[SUM_LX + i], state[SUM_L2 + i]
        ratio = sum_lx / sum_l2
        found = (sum_l2 > ZERO) & (abs(state[LARGEST + i]) >= EPS)
        state[SCALE + i] = ratio if found else ZERO
    for k in range(N):
        row = codes[k * LANES : (k + 1) * LANES]
        for i in range(LANES):
            code = row[i] - LOW
            row[i] = ZERO if abs(state[LARGEST + i]) < EPS else code


@kernel
def _first_codes(x: Array, w: Array, wx: Array, codes: Array, state: Array) -> None:
    for i in range(LANES):
        state[ISCALE + i] = LOW / state[LARGEST + i]
        state[SUM_LX + i] = ZERO
        state[SUM_L2 + i] = ZERO
    for k in range(0, N, STEP):
        part = slice(k * LANES, (k + STEP) * LANES)
        _add_first_codes(x[part], w[part], wx[part], codes[part], state)


@kernel
def _add_first_codes(x: Array, w: Array, wx: Array, codes: Array, state: Array) -> None:
    for i in range(LANES):
        iscale, sum_lx, sum_l2 = state[ISCALE + i], state[SUM_LX + i], state[SUM_L2 + i]
        for k in range(STEP):
            o = k * LANES + i
            code = (iscale * x[o] + MAGIC) - MAGIC  # nearest_int: it is about 4 at most
            code = code if code > LOW else LOW
            code = code if code < HIGH else HIGH
            codes[o] = code
            sum_lx += wx[o] * code
            sum_l2 += w[o] * code * code
        state[SUM_LX + i] = sum_lx
        state[SUM_L2 + i] = sum_l2


@kernel
def _improve(x: Array, w: Array, wx: Array, codes: Array, state: Array) -> None:
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
