"""TQ1_0: 1.6875 bits per weight. Blocks of 256 weights; value = d * (code - 1), codes 0..2; no use for an importance.

    48 bytes of five codes each | 4 bytes of four codes each | float16 d

The codes of a byte are the digits of a number n below 243 in base 3, the first the most significant, of four codes
the last digit is 0. The byte is n * 256 / 243, rounded up: a digit is what times 3 goes over the top of the byte.
Byte k of the first 32 holds codes k, k + 32 .. k + 128; of the next 16 codes 160 + k, 160 + k + 16 .. 160 + k + 64; of
the last 4 codes 240 + k, 240 + k + 4 .. 240 + k + 12.

Source: ggml-quants.c, quantize_row_tq1_0_ref, dequantize_row_tq1_0.
"""

from __future__ import annotations

import numpy as np

from quantize.blocks.base import BlockFormat, Grid
from quantize.blocks.error_weights import TileGuide
from quantize.blocks.half import F32, I32, load_f16
from quantize.blocks.jit import inlined, kernel
from quantize.blocks.ternary import fit_largest
from quantize.blocks.tiles import LANES, copy_rows, row
from quantize.blocks.tq2_0 import LEVELS
from quantize.tensors import Array, QType

QK_K, TYPE_SIZE, D = 256, 54, 52
RUNS = ((0, 0, 32, 5), (32, 160, 16, 5), (48, 240, 4, 4))  # first byte, first code, bytes, codes of a byte


def fit(x: Array, guide: TileGuide | None) -> Grid:
    """See `BlockFormat`."""
    return fit_largest(x, LEVELS, 0)


@kernel
def pack(head: Array, codes: Array, blocks: Array) -> None:
    """See `BlockFormat.pack_kernel`."""
    for t in range(len(head)):
        copy_rows(head[t], blocks[t, D:])
        for first_byte, first, n, n_digits in RUNS:
            for k in range(n):
                _pack_byte(codes[t], first + k, n, n_digits, blocks[t, first_byte + k])


@kernel
def _pack_byte(codes: Array, first: int, step: int, n_digits: int, byte: Array) -> None:
    for i in range(LANES):
        byte[i] = 0
    for digit in range(5):
        if digit < n_digits:
            code = row(codes, first + digit * step)
            for i in range(LANES):
                byte[i] = np.uint8(byte[i] * 3 + code[i])
        else:
            for i in range(LANES):
                byte[i] = np.uint8(byte[i] * 3)
    for i in range(LANES):
        n = I32(byte[i])
        byte[i] = np.uint8(I32(n * I32(256) + I32(242)) // I32(243))


@kernel
def unpack(blocks: Array, values: Array) -> None:
    """See `BlockFormat.decode`."""
    for b in range(len(blocks)):
        block, x = blocks[b], values[b]
        d = load_f16(block, D)
        _unpack_five(block, 0, 32, d, x, 0)
        _unpack_five(block, 32, 16, d, x, 160)
        for k in range(4):
            byte = block[48 + k]
            x[240 + k] = _value(byte, 1, d)
            x[244 + k] = _value(byte, 3, d)
            x[248 + k] = _value(byte, 9, d)
            x[252 + k] = _value(byte, 27, d)


@inlined
def _unpack_five(block: Array, first_byte: int, n: int, d: np.float32, x: Array, first: int) -> None:
    """All five digits of a byte at a time: one loop over bytes, in whose turns nothing depends on another."""
    for k in range(n):
        byte = block[first_byte + k]
        x[first + k] = _value(byte, 1, d)
        x[first + k + n] = _value(byte, 3, d)
        x[first + k + 2 * n] = _value(byte, 9, d)
        x[first + k + 3 * n] = _value(byte, 27, d)
        x[first + k + 4 * n] = _value(byte, 81, d)


@inlined
def _value(byte: np.uint8, power: int, d: np.float32) -> np.float32:
    """The digit behind those that multiplying by a power of 3 moves over the top."""
    left = I32(I32(byte) * I32(power)) & I32(255)
    return F32(I32(I32(left * I32(3)) >> I32(8)) - I32(1)) * d


FORMAT = BlockFormat(QType.TQ1_0, QK_K, TYPE_SIZE, fit, pack, unpack, uses_importance=False)
