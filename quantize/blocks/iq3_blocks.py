"""What the blocks of IQ3_XXS and IQ3_S share around the search (`iq3`): codes of scales, and groups decoded.

Source: ggml-quants.c, the ends of quantize_row_iq3_xxs_impl and quantize_row_iq3_s_impl.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from quantize.blocks.iq2_blocks import even_signs
from quantize.blocks.iq3 import N_SUB
from quantize.blocks.iq3_cells import GROUP
from quantize.blocks.iq3_search import FIFTEEN
from quantize.blocks.jit import inlined, kernel
from quantize.blocks.lanes import HALF, ONE, ZERO, nearest_code
from quantize.blocks.tiles import LANES
from quantize.tensors import Array


def code_scales(scales: Array, more: float) -> tuple[Array, Array, Array]:
    """How the scales of blocks are stored.

    Returns:
        The largest scale and the factor d, multiplied by `more`, float32 [n_tiles, LANES]; codes 0..15 of the
        scales d * (2 * code + 1), uint8 [n_tiles, 8, LANES].
    """
    largest, d = np.empty((2, len(scales), LANES), np.float32)
    sc = np.empty(scales.shape, np.uint8)
    _code_scales(scales, np.float32(more), largest, d, sc)
    return largest, d, sc


@kernel
def _code_scales(scales: Array, more: np.float32, largest: Array, d: Array, sc: Array) -> None:
    for t in range(len(scales)):
        high = largest[t]
        for i in range(LANES):
            high[i] = ZERO
        for j in range(N_SUB):
            values = scales[t, j]
            for i in range(LANES):
                high[i] = high[i] if high[i] > values[i] else values[i]
        for j in range(N_SUB):
            values, coded = scales[t, j], sc[t, j]
            for i in range(LANES):
                inverse = ONE / (high[i] / np.float32(31))
                code = nearest_code(HALF * (inverse * values[i] - ONE), ZERO, FIFTEEN)
                coded[i] = np.uint8(np.int32(code))
        for i in range(LANES):
            d[t, i] = high[i] / np.float32(31) * more


@cache
def sign_factors(even: bool) -> Array:
    """The factors of eight weights, 1 or -1, by their signs: float32 [256 * 8], or [128 * 8] if they are even.

    Of even signs seven bits are stored; the eighth makes the number of negative weights even.
    """
    table = even_signs() if even else np.arange(256, dtype=np.uint8)
    bits = np.unpackbits(table[:, None], axis=1, bitorder="little")
    factors: Array = 1 - 2 * bits.reshape(-1).astype(np.float32)
    return factors


@inlined
def put_group(
    scale: np.float32, entries: Array, code: int, factors: Array, at: int, values: Array, to: int
) -> None:
    """Decode a group: four values of the flat `entries`, with the factors from `at`, to `values` from `to`."""
    e, s, v = np.uint64(GROUP) * np.uint64(code), np.uint64(at), np.uint64(to)
    one, two, three = np.uint64(1), np.uint64(2), np.uint64(3)
    v0, v1 = scale * entries[e] * factors[s], scale * entries[e + one] * factors[s + one]
    v2, v3 = scale * entries[e + two] * factors[s + two], scale * entries[e + three] * factors[s + three]
    values[v], values[v + one], values[v + two], values[v + three] = v0, v1, v2, v3
