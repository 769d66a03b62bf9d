"""MXFP4: 4.25 bits per weight. Blocks of 32 weights, a power of two for a scale; no search, no use for an importance.

    uint8 e | 16 bytes: code[k] | code[k + 16] << 4

value = 2^(e - 128) * TABLE[code], TABLE being twice the values of the OCP format's four-bit float E2M1.

Source: ggml-quants.c, quantize_row_mxfp4_ref, best_index_mxfp4, dequantize_row_mxfp4.
"""

from __future__ import annotations

import math
from functools import partial

import numpy as np

from quantize.blocks.base import BlockFormat, Grid
from quantize.blocks.error_weights import TileGuide
from quantize.blocks.half import F32, I32
from quantize.blocks.jit import kernel
from quantize.blocks.lanes import ZERO
from quantize.blocks.nibbles import QK, pack_4
from quantize.blocks.qx import find_largest
from quantize.blocks.tiles import LANES, row
from quantize.tensors import Array, QType

TYPE_SIZE = 17
TABLE = np.array([sign * value for sign in (1, -1) for value in (0, 1, 2, 3, 4, 6, 8, 12)], np.float32)
MIDDLES = tuple(F32(value) for value in (0.5, 1.5, 2.5, 3.5, 5, 7, 10))
OVERFLOWS, LAST_FINITE = F32(2.0**125), I32(5)  # the scale at which the values behind the fifth are infinite
SCALE_UP = F32(2.0**64)  # makes a normal float of a subnormal one


def _steps_below(power: int) -> int:
    """How many float32 below 2^power have a log2f that is rounded up to `power`.

    n steps of 2^-24 are n * 2^-24 / ln 2 in the logarithm, of which half a unit in the last place gets lost.
    """
    if power in (0, 1):  # logarithms near 0 are exact enough; just below 1 half a unit is less than one step
        return 0
    magnitude = -power if power < 0 else power - 1
    return int(2.0 ** (magnitude.bit_length() - 1) * math.log(2))


LOWEST = -149
STEPS = np.array([_steps_below(exponent + 1) for exponent in range(LOWEST, 128)], np.int32)


@kernel
def floor_log2(value: np.float32) -> np.int32:
    """C's floorf(log2f(value)) of a positive value, in which log2f may round up to the next integer."""
    small = value < F32(2.0**-126)
    scaled = F32(value * SCALE_UP) if small else F32(value)
    shift = I32(191) if small else I32(127)
    bits = F32(scaled).view(I32)
    exponent = I32(I32(bits >> I32(23)) - shift)
    return I32(I32(I32(bits + STEPS[exponent - LOWEST]) >> I32(23)) - shift)


@kernel
def half_scale(e: np.uint8) -> np.float32:
    """2^(e - 128), subnormal for e < 2 (ggml's `ggml_e8m0_to_fp32_half`)."""
    exponent = I32(e)
    return I32(I32(0x00200000) << exponent if exponent < 2 else I32(exponent - I32(1)) << I32(23)).view(F32)


def fit(x: Array, guide: TileGuide | None) -> Grid:
    """See `BlockFormat`."""
    head, scales = np.empty((len(x), 1, LANES), np.uint8), np.empty((len(x), 1, LANES), np.float32)
    _fit(x, head, scales)
    return Grid(head, TABLE, scales, None, partial(_round, scales=scales))


@kernel
def _fit(x: Array, head: Array, scales: Array) -> None:
    """The exponent of each block; tiny ones wrap round, as C's cast to uint8_t does on x86."""
    for t in range(len(x)):
        e, scale = head[t, 0], scales[t, 0]
        find_largest(QK, x[t], scale)
        for i in range(LANES):
            top = abs(scale[i])
            exponent = I32(floor_log2(top) + I32(125)) if top > ZERO else I32(0)
            e[i] = np.uint8(exponent & I32(255))
            scale[i] = half_scale(e[i])


def _round(x: Array, scales: Array) -> Array:
    codes = np.empty(x.shape, np.uint8)
    _round_to_table(x, scales, codes)
    return codes


@kernel
def _round_to_table(x: Array, scales: Array, codes: Array) -> None:
    """The nearest codes, the smaller magnitude of two.

    ggml compares distances; near the middle of two values those are exact, elsewhere monotonous. A value that overflows
    is at an infinite distance.
    """
    for t in range(len(x)):
        scale = scales[t, 0]
        for k in range(QK):
            xs, code = row(x[t], k), row(codes[t], k)
            for i in range(LANES):
                d, v = scale[i], xs[i]
                size = abs(v)
                magnitude = I32(0)
                for above in range(7):
                    magnitude = I32(above + 1) if size > MIDDLES[above] * d else magnitude
                magnitude = min(magnitude, LAST_FINITE) if d >= OVERFLOWS else magnitude
                negative = (v < ZERO) & (magnitude > I32(0))
                code[i] = np.uint8(I32(magnitude | I32(8)) if negative else magnitude)


@kernel
def unpack(blocks: Array, values: Array) -> None:
    """See `BlockFormat.decode`."""
    for b in range(len(blocks)):
        block, x = blocks[b], values[b]
        d = half_scale(block[0])
        for i in range(QK // 2):
            x[i] = d * TABLE[block[1 + i] & 15]
            x[i + 16] = d * TABLE[block[1 + i] >> 4]


FORMAT = BlockFormat(QType.MXFP4, QK, TYPE_SIZE, fit, pack_4, unpack, uses_importance=False)
