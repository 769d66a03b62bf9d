"""Weights of IQ2 and IQ3 as magnitudes and signs, and the weights of their errors, for a sub-block of all lanes.

Source: ggml-quants.c, quantize_row_iq2_xs_impl, quantize_row_iq2_s_impl, quantize_row_iq3_xxs_impl.
"""

from __future__ import annotations

import numpy as np

from quantize.blocks.jit import leaf
from quantize.blocks.lanes import ZERO
from quantize.blocks.tiles import LANES
from quantize.tensors import Array

SIGNED = 8  # weights whose signs make a byte
QUARTER = np.float32(0.25)


@leaf
def weigh_plain(n: int, x: Array, sigma2: Array, w: Array) -> None:
    """The weights of the errors where there are no importances."""
    for k in range(n):
        xs, ws = x[k * LANES : (k + 1) * LANES], w[k * LANES : (k + 1) * LANES]
        for i in range(LANES):
            ws[i] = QUARTER * sigma2[i] + xs[i] * xs[i]


@leaf
def fold(x: Array, w: Array, even_signs: bool, magnitudes: Array, signs: Array) -> None:
    """Magnitudes and signs of eight weights, bit k set where weight k is negative.

    Where signs are to be even, bit 7 is left out, and if they are odd the weight that matters least changes its sign.
    """
    for i in range(LANES):
        sign, is_odd, at = np.int32(0), np.int32(0), np.int32(0)
        least = w[i] * x[i] * x[i]
        for k in range(SIGNED):
            v = x[k * LANES + i]
            negative = np.int32(1) if v < ZERO else np.int32(0)
            sign |= negative << np.int32(k)
            is_odd ^= negative
            this = w[k * LANES + i] * v * v
            at = np.int32(k) if this < least else at
            least = this if this < least else least
        flipped = np.int32(is_odd << at) if even_signs else np.int32(0)
        sign ^= flipped
        for k in range(SIGNED):
            v = x[k * LANES + i]
            magnitudes[k * LANES + i] = -v if sign >> np.int32(k) & np.int32(1) else v
        signs[i] = np.uint8(sign & np.int32(127)) if even_signs else np.uint8(sign)


@leaf
def multiply(x: Array, w: Array, wx: Array, root: Array) -> None:
    """Products and roots of the weights."""
    for k in range(x.size):
        wx[k] = w[k] * x[k]
    for k in range(x.size):
        root[k] = np.sqrt(w[k])


@leaf
def find_max(n: int, x: Array, largest: Array) -> None:
    """The largest magnitude of each lane, [LANES]."""
    for i in range(LANES):
        largest[i] = x[i]
    for k in range(1, n):
        xs = x[k * LANES : (k + 1) * LANES]
        for i in range(LANES):
            high, v = largest[i], xs[i]
            largest[i] = high if high > v else v
