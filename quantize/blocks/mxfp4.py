"""MXFP4: 4.25 bits per weight. Blocks of 32 weights, a power of two for a scale; no search, no use for an importance.

    uint8 e | 16 bytes: code[k] | code[k + 16] << 4

value = 2^(e - 128) * TABLE[code], TABLE being twice the values of the OCP format's four-bit float E2M1.

Source: ggml-quants.c, quantize_row_mxfp4_ref, best_index_mxfp4, dequantize_row_mxfp4.
"""

from __future__ import annotations

import math

import numpy as np

from quantize.blocks.base import BlockFormat
from quantize.blocks.half import F32, I32, as_f32
from quantize.blocks.jit import kernel
from quantize.tensors import Array, QType

BLOCK, BYTES = 32, 17
TILE = 64  # blocks: 8 KiB of float32
TABLE = np.array([sign * value for sign in (1, -1) for value in (0, 1, 2, 3, 4, 6, 8, 12)], np.float32)
MIDDLES = tuple(F32(value) for value in (0.5, 1.5, 2.5, 3.5, 5, 7, 10))
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
def _fit(x: Array, e: Array) -> None:
    """Weights [n * 32] to the exponent of each block; tiny ones wrap round, as C's cast to uint8_t does on x86."""
    for block in range(e.size):
        part = x[block * BLOCK : (block + 1) * BLOCK]
        top = I32(0)
        for i in range(BLOCK):  # magnitudes are compared as integers: float maxima are not vectorised
            size = I32(F32(part[i]).view(I32) & I32(0x7FFFFFFF))
            top = size if size > top else top
        exponent = I32(floor_log2(I32(top).view(F32)) + I32(125)) if top > 0 else I32(0)
        e[block] = np.uint8(exponent & I32(255))


@kernel
def half_scale(e: np.uint8) -> np.float32:
    """2^(e - 128), subnormal for e < 2 (ggml's `ggml_e8m0_to_fp32_half`)."""
    exponent = I32(e)
    return I32(I32(0x00200000) << exponent if exponent < 2 else I32(exponent - I32(1)) << I32(23)).view(F32)


@kernel
def _round(x: Array, e: Array, codes: Array) -> None:
    """Weights [n * 32] to codes, uint8 [n * 32]: the nearest, the smaller magnitude of two.

    ggml compares distances; near the middle of two values those are exact, elsewhere monotonous.
    """
    for block in range(e.size):
        d = half_scale(e[block])
        part, part_codes = x[block * BLOCK : (block + 1) * BLOCK], codes[block * BLOCK : (block + 1) * BLOCK]
        for i in range(BLOCK):
            v = part[i]
            size = abs(v)
            code = F32(0)
            for k in range(7):
                code = F32(k + 1) if size > MIDDLES[k] * d else code
            sign = F32(8) if v < F32(0) else F32(0)
            part_codes[i] = np.uint8(np.int32(code + sign if code > F32(0) else F32(0)))


@kernel
def _pack(e: Array, codes: Array, out: Array) -> None:
    for block in range(e.size):
        at = block * BYTES
        out[at] = e[block]
        for i in range(BLOCK // 2):
            out[at + 1 + i] = codes[block * BLOCK + i] | codes[block * BLOCK + 16 + i] << 4


@kernel
def _encode_flat(weights: Array, out: Array) -> None:
    x = np.empty(TILE * BLOCK, np.float32)
    codes = np.empty(TILE * BLOCK, np.uint8)
    e = np.empty(TILE, np.uint8)
    n_block = weights.size // BLOCK
    for start in range(0, n_block, TILE):
        n = min(TILE, n_block - start)
        part = weights[start * BLOCK : (start + n) * BLOCK]
        for i in range(part.size):
            x[i] = as_f32(part[i])
        _fit(x, e[:n])
        _round(x, e[:n], codes)
        _pack(e[:n], codes, out[start * BYTES : (start + n) * BYTES])


def encode(weights: Array, importance: Array | None, out: Array) -> None:
    """See `BlockFormat.encode`."""
    _encode_flat(weights.reshape(-1), out.reshape(-1))


@kernel
def _unpack(blocks: Array, values: Array) -> None:
    for b in range(len(blocks)):
        block, x = blocks[b], values[b]
        d = half_scale(block[0])
        for i in range(BLOCK // 2):
            x[i] = d * TABLE[block[1 + i] & 15]
            x[i + 16] = d * TABLE[block[1 + i] >> 4]


def decode(blocks: Array, out: Array) -> None:
    """See `BlockFormat.decode`."""
    _unpack(blocks.reshape(-1, BYTES), out.reshape(-1, BLOCK))


FORMAT = BlockFormat(QType.MXFP4, BLOCK, BYTES, encode, decode, uses_importance=False)
