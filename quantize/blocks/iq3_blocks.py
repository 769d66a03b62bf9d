"""What the blocks of IQ3_XXS and IQ3_S share around the search (`iq3`): codes of scales, and groups decoded.

Source: ggml-quants.c, the ends of quantize_row_iq3_xxs_impl and quantize_row_iq3_s_impl.
"""

from __future__ import annotations

import numpy as np

from quantize.blocks.iq3 import FIFTEEN, N_SUB, SIGNED
from quantize.blocks.iq3_cells import GROUP
from quantize.blocks.jit import kernel
from quantize.blocks.lanes import HALF, ONE, ZERO, nearest_code
from quantize.blocks.tiles import LANES
from quantize.tensors import Array


def code_scales(scales: Array, more: float) -> tuple[Array, Array, Array]:
    """How the scales of blocks are stored.

    Returns:
        The largest scale and the factor d, multiplied by `more`, float32 [n_tiles, LANES]; the codes, uint8 [n_tiles, 8,
        LANES], 0..15 for scales d * (2 * code + 1).
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


@kernel
def put_eight(scale: np.float32, first: Array, second: Array, signs: np.uint8, values: Array) -> None:
    """Decode two groups, which share a byte of signs."""
    bits, s = values.view(np.uint32), np.uint32(signs)
    for k in range(GROUP):
        values[k] = scale * first[k]
        values[GROUP + k] = scale * second[k]
    for k in range(SIGNED):
        bits[k] ^= np.uint32(np.uint32(s >> np.uint32(k)) << np.uint32(31))
