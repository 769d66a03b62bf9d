"""Q8_0: 8.5 bits per weight. Blocks of 32 weights; value = d * (code - 128); no search, no use for an importance.

    float16 d | 32 bytes: code[k] - 128, an int8

d is the largest magnitude / 127, codes are rounded half away from zero.

Source: ggml-quants.c, quantize_row_q8_0_ref, dequantize_row_q8_0.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from quantize.blocks.base import BlockFormat, Grid
from quantize.blocks.error_weights import TileGuide
from quantize.blocks.half import load_f16
from quantize.blocks.jit import kernel
from quantize.blocks.lanes import ONE, ZERO
from quantize.blocks.parts import PartFormat, store_f16
from quantize.blocks.qx import find_largest
from quantize.blocks.tiles import LANES, copy_rows, row, store_halves
from quantize.tensors import Array, QType

QK, TYPE_SIZE = 32, 34
LEVELS = np.arange(-128, 128, dtype=np.float32)
BEFORE_HALF = np.float32(0.49999997)  # the float32 below one half: adding it and truncating is C's roundf


def fit(x: Array, guide: TileGuide | None) -> Grid:
    """See `BlockFormat`."""
    d, inverses = np.empty((2, len(x), LANES), np.float32)
    head = np.empty((len(x), 2, LANES), np.uint8)
    _fit(x, d, inverses, head)
    return Grid(head, LEVELS, d[:, None], None, partial(_round, inverses=inverses))


@kernel
def _fit(x: Array, d: Array, inverses: Array, head: Array) -> None:
    for t in range(len(x)):
        scale, inverse = d[t], inverses[t]
        find_largest(QK, x[t], scale)
        for i in range(LANES):
            v = abs(scale[i]) / np.float32(127)
            scale[i] = v
            inverse[i] = ONE / v if v != ZERO else ZERO
    store_halves(d, head, 0)


def _round(x: Array, inverses: Array) -> Array:
    codes = np.empty(x.shape, np.uint8)
    _round_away(x, inverses, codes)
    return codes


@kernel
def _round_away(x: Array, inverses: Array, codes: Array) -> None:
    for t in range(len(x)):
        inverse = inverses[t]
        for k in range(QK):
            xs, code = row(x[t], k), row(codes[t], k)
            for i in range(LANES):
                v = xs[i] * inverse[i]
                size = abs(v)
                # the inverse of a subnormal scale is infinite: codes become those of 0
                new = np.int32(size + BEFORE_HALF if size < np.float32(128) else ZERO)
                code[i] = np.uint8((-new if v < ZERO else new) + np.int32(128))


@kernel
def pack(head: Array, codes: Array, blocks: Array) -> None:
    """See `BlockFormat.pack_kernel`."""
    for t in range(len(head)):
        tile, block = codes[t], blocks[t]
        copy_rows(head[t], block[:2])
        for k in range(QK):
            code, byte = row(tile, k), block[2 + k]
            for i in range(LANES):
                byte[i] = code[i] ^ 128


@kernel
def unpack(blocks: Array, values: Array) -> None:
    """See `BlockFormat.decode`."""
    for b in range(len(blocks)):
        block, x = blocks[b], values[b]
        d = load_f16(block, 0)
        for k in range(QK):
            x[k] = np.float32(np.int8(block[2 + k])) * d


FORMAT = BlockFormat(QType.Q8_0, QK, TYPE_SIZE, fit, pack, unpack, uses_importance=False)


@kernel
def split(blocks: Array, codes: Array, scales: Array, mins: Array, factors: Array) -> None:
    """See `PartFormat`; the one scale is 1."""
    scales[:] = 1
    for b in range(len(blocks)):
        factors[b, 0] = load_f16(blocks[b], 0)
        for k in range(QK):
            codes[b, k] = blocks[b, 2 + k] ^ 128


@kernel
def join(codes: Array, scales: Array, mins: Array, factors: Array, blocks: Array) -> None:
    """See `PartFormat`."""
    for b in range(len(blocks)):
        store_f16(blocks[b], 0, factors[b, 0])
        for k in range(QK):
            blocks[b, 2 + k] = codes[b, k] ^ 128


PARTS = PartFormat(QType.Q8_0, QK, TYPE_SIZE, 1, LEVELS, 1, 1, 0, split, join)
