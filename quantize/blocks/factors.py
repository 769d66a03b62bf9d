"""How K-quants code the scales and the mins of a super-block, with one float16 factor each: scale = factor * code.

Source: ggml-quants.c, quantize_row_q{2,4,5}_K_ref (by the maximum) and _impl (by make_qp_quants).
"""

from __future__ import annotations

import numpy as np

from quantize.blocks.jit import kernel
from quantize.blocks.lanes import ZERO, as_byte, nearest_int, rounded_to_half
from quantize.blocks.qp import N_STATE, make_qp
from quantize.blocks.tiles import LANES, aligned_floats
from quantize.tensors import Array


def code_by_maximum(values: Array, qmax: int) -> tuple[Array, Array]:
    """Code the scales (or mins) of super-blocks so that the largest becomes qmax.

    values is [n_tiles, n_sub, LANES]. Returns codes as a uint8_t leaves them (float32, same shape) and the factor
    [n_tiles, LANES], a float16 value.
    """
    codes, factors = np.empty_like(values), np.empty((len(values), LANES), np.float32)
    _code_by_maximum(values, np.float32(qmax), codes, factors)
    return codes, factors


@kernel
def _code_by_maximum(values: Array, qmax: np.float32, codes: Array, factors: Array) -> None:
    n_tiles, n_sub, _ = values.shape
    for t in range(n_tiles):
        for i in range(LANES):
            high = ZERO
            for j in range(n_sub):
                high = values[t, j, i] if values[t, j, i] > high else high
            inverse = qmax / high if high > ZERO else ZERO
            for j in range(n_sub):
                codes[t, j, i] = as_byte(nearest_int(inverse * values[t, j, i]))
            factors[t, i] = rounded_to_half(high / qmax)


def code_by_search(values: Array, sum_w: Array, qmax: int) -> tuple[Array, Array]:
    """Code the scales (or mins) of super-blocks by `make_qp`; arguments and results as in `code_by_maximum`."""
    codes, factors = np.empty_like(values), np.empty((len(values), LANES), np.float32)
    _code_by_search(values, sum_w, np.float32(qmax), codes, factors)
    return codes, factors


@kernel
def _code_by_search(values: Array, sum_w: Array, qmax: np.float32, codes: Array, factors: Array) -> None:
    state = aligned_floats(N_STATE * LANES)
    n_tiles, n_sub, _ = values.shape
    for t in range(n_tiles):
        scale = factors[t]
        make_qp(n_sub, qmax, values[t].reshape(-1), sum_w[t].reshape(-1), codes[t].reshape(-1), scale, state)
        for i in range(LANES):
            scale[i] = rounded_to_half(scale[i])
