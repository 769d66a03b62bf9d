"""NVFP4: 4.5 bits per weight. Blocks of 64 weights, four sub-blocks of 16; no search, no use for an importance.

    4 bytes: the scale of each sub-block, a float without sign: 4 bits of exponent, 3 of mantissa (UE4M3)
    32 bytes: byte 8 j + k is code[16 j + k] | code[16 j + k + 8] << 4

value = scale / 2 * TABLE[code], TABLE being twice the values of the four-bit float E2M1. NVIDIA's files have a second
scale for the whole tensor, which llama.cpp keeps in a tensor of its own; what ggml encodes has none. So weights lose
their precision below 2^-6 * 6, where scales are subnormal, and those below 2^-10 * 6 become zeros.

Source: ggml-quants.c, quantize_row_nvfp4_ref, best_index_mxfp4, dequantize_row_nvfp4; ggml-impl.h,
ggml_fp32_to_ue4m3, ggml_ue4m3_to_fp32.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from quantize.blocks.base import BlockFormat, Grid
from quantize.blocks.error_weights import TileGuide
from quantize.blocks.half import F32, I32
from quantize.blocks.jit import inlined, kernel
from quantize.blocks.lanes import HALF, ZERO
from quantize.blocks.mxfp4 import TABLE
from quantize.blocks.ternary import largest_magnitude
from quantize.blocks.tiles import LANES, copy_rows, row
from quantize.tensors import Array, QType

QK, N_SUB, SUB = 64, 4, 16
TYPE_SIZE = 36
MAGNITUDES = tuple(F32(value) for value in TABLE[:8])
LARGEST_CODE, FIRST_TOO_LARGE = I32(0x7E), I32(0x78)
LEAST_NORMAL = F32(2.0**-6)
SCALES = np.array(  # half of what a byte stands for; the sign bit is not looked at
    [
        0
        if byte in (0, 0x7F)
        else (byte & 7) * 2.0**-10
        if byte & 0x78 == 0
        else (8 + (byte & 7)) * 2.0 ** ((byte >> 3 & 15) - 11)
        for byte in range(256)
    ],
    np.float32,
)


@inlined
def to_ue4m3(value: np.float32) -> np.int32:
    """The code of a value that is not negative: the nearest of the next below and above, the upper of two.

    All that is at least 256 gets the largest code, 448.
    """
    normal = I32(I32(I32(I32(F32(value).view(I32) >> I32(19)) + I32(1)) >> I32(1)) - I32(120 << 3))
    normal = normal if normal < FIRST_TOO_LARGE else LARGEST_CODE
    scaled = F32(F32(min(value, LEAST_NORMAL) * F32(512)) + HALF)
    small = min(I32(scaled), I32(7))
    return small if value < LEAST_NORMAL else normal


def fit(x: Array, guide: TileGuide | None) -> Grid:
    """See `BlockFormat`."""
    head, scales = np.empty((len(x), N_SUB, LANES), np.uint8), np.empty((len(x), N_SUB, LANES), np.float32)
    _fit(x, head, scales)
    return Grid(head, TABLE, scales, None, partial(_round, scales=scales))


@kernel
def _fit(x: Array, head: Array, scales: Array) -> None:
    for t in range(len(x)):
        for j in range(N_SUB):
            codes, scale = head[t, j], scales[t, j]
            largest_magnitude(SUB, x[t][j * SUB * LANES : (j + 1) * SUB * LANES], scale)
            for i in range(LANES):
                code = to_ue4m3(F32(scale[i] / F32(6)))
                codes[i] = np.uint8(code)
                small = F32(F32(code) * F32(2.0**-10))
                normal = I32(I32(code << I32(20)) + I32(119 << 23)).view(F32)
                scale[i] = small if code < I32(8) else normal


def _round(x: Array, scales: Array) -> Array:
    codes = np.empty(x.shape, np.uint8)
    _round_to_table(x, scales, codes)
    return codes


@kernel
def _round_to_table(x: Array, scales: Array, codes: Array) -> None:
    """The first code of least distance: where the scale is 0 or the distances are rounded, others are as near."""
    for t in range(len(x)):
        for j in range(N_SUB):
            scale = scales[t, j]
            for k in range(j * SUB, (j + 1) * SUB):
                xs, code = row(x[t], k), row(codes[t], k)
                for i in range(LANES):
                    d, v = scale[i], xs[i]
                    size = abs(v)
                    least, magnitude = size, I32(0)
                    for m in range(1, 8):
                        distance = abs(MAGNITUDES[m] * d - size)
                        magnitude = I32(m) if distance < least else magnitude
                        least = distance if distance < least else least
                    negative = (v < ZERO) & (magnitude > I32(0))
                    code[i] = np.uint8(I32(magnitude | I32(8)) if negative else magnitude)


@kernel
def pack(head: Array, codes: Array, blocks: Array) -> None:
    """See `BlockFormat.pack_kernel`."""
    for t in range(len(head)):
        tile, block = codes[t], blocks[t]
        copy_rows(head[t], block[:N_SUB])
        for j in range(N_SUB):
            for k in range(8):
                low, high, byte = row(tile, SUB * j + k), row(tile, SUB * j + k + 8), block[N_SUB + 8 * j + k]
                for i in range(LANES):
                    byte[i] = low[i] | high[i] << 4


@kernel
def unpack(blocks: Array, values: Array) -> None:
    """See `BlockFormat.decode`."""
    for b in range(len(blocks)):
        block, x = blocks[b], values[b]
        for j in range(N_SUB):
            d = SCALES[block[j]]
            for k in range(8):
                byte = block[N_SUB + 8 * j + k]
                x[SUB * j + k] = TABLE[byte & 15] * d
                x[SUB * j + k + 8] = TABLE[byte >> 4] * d


FORMAT = BlockFormat(QType.NVFP4, QK, TYPE_SIZE, fit, pack, unpack, uses_importance=False)
