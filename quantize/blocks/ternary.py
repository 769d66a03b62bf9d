"""The fit and the rounding of Q2_0, TQ1_0 and TQ2_0: value = d * (code - 1), d the largest magnitude of the block.

Codes are those of roundf(x / d), half away from zero, computed with the inverse of the unrounded d.

Source: ggml-quants.c, quantize_row_q2_0_ref, quantize_row_tq1_0_ref, quantize_row_tq2_0_ref.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from quantize.blocks.base import Grid
from quantize.blocks.half import I32
from quantize.blocks.jit import kernel
from quantize.blocks.lanes import HALF, ONE, ZERO
from quantize.blocks.tiles import LANES, row, store_halves
from quantize.tensors import Array

INFINITY = np.float32(np.inf)
ONE_AND_HALF = np.float32(1.5)


def fit_largest(x: Array, levels: Array, of_infinite: float) -> Grid:
    """Fit tiles x [n_tiles, block_size * LANES]; levels are -1, 0, 1, and 2 where there is a fourth code.

    The inverse of a subnormal d overflows, and `of_infinite` stands in its place: with NaN all codes become 0, with 0
    all become 1, which is where C's conversions of infinity and NaN to integers lead.
    """
    d, inverses = np.empty((2, len(x), LANES), np.float32)
    head = np.empty((len(x), 2, LANES), np.uint8)
    _fit(x, np.float32(of_infinite), d, inverses)
    store_halves(d, head, 0)
    highest = ONE_AND_HALF if len(levels) > 3 else INFINITY
    return Grid(head, levels, d[:, None], None, partial(_round, highest=highest, inverses=inverses))


@kernel
def _fit(x: Array, of_infinite: np.float32, d: Array, inverses: Array) -> None:
    n = x.shape[1] // LANES
    for t in range(len(x)):
        largest_magnitude(n, x[t], d[t])
        scale, inverse = d[t], inverses[t]
        for i in range(LANES):
            v = ONE / scale[i]
            v = v if v < INFINITY else of_infinite
            inverse[i] = v if scale[i] > ZERO else ZERO


@kernel
def largest_magnitude(n: int, x: Array, largest: Array) -> None:
    """The largest magnitude in each lane of x [n * LANES]: [LANES]."""
    for i in range(LANES):
        largest[i] = ZERO
    for k in range(n):
        xs = row(x, k)
        for i in range(LANES):
            size = abs(xs[i])
            largest[i] = size if size > largest[i] else largest[i]


def _round(x: Array, highest: np.float32, inverses: Array) -> Array:
    codes = np.empty(x.shape, np.uint8)
    _round_away(x, highest, inverses, codes)
    return codes


@kernel
def _round_away(x: Array, highest: np.float32, inverses: Array, codes: Array) -> None:
    """The code is the number of middles that v reaches; -0.5 is rounded away from zero, so it has to be passed."""
    n = x.shape[1] // LANES
    for t in range(len(x)):
        inverse = inverses[t]
        for k in range(n):
            xs, code = row(x[t], k), row(codes[t], k)
            for i in range(LANES):
                v = xs[i] * inverse[i]
                code[i] = np.uint8(I32(v > -HALF) + I32(v >= HALF) + I32(v >= highest))
