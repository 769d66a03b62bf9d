"""Q1_0: 1.125 bits per weight. Blocks of 128 weights, signs alone; no search, no use for an importance.

    float16 d | 16 bytes: bit k % 8 of byte k // 8 is code[k]

value = d where the code is 1, else -d; d is the mean magnitude.

Source: ggml-quants.c, quantize_row_q1_0_ref, dequantize_row_q1_0.
"""

from __future__ import annotations

import numpy as np

from quantize.blocks.base import BlockFormat, Grid
from quantize.blocks.error_weights import TileGuide
from quantize.blocks.half import load_f16
from quantize.blocks.jit import kernel
from quantize.blocks.lanes import ZERO
from quantize.blocks.parts import PartFormat, store_f16
from quantize.blocks.tiles import LANES, copy_rows, row, store_halves
from quantize.tensors import Array, QType

QK, TYPE_SIZE = 128, 18
LEVELS = np.array([-1, 1], np.float32)


def fit(x: Array, guide: TileGuide | None) -> Grid:
    """See `BlockFormat`."""
    d, head = np.empty((len(x), LANES), np.float32), np.empty((len(x), 2, LANES), np.uint8)
    _fit(x, d)
    store_halves(d, head, 0)
    return Grid(head, LEVELS, d[:, None], None, _round)


@kernel
def _fit(x: Array, d: Array) -> None:
    for t in range(len(x)):
        means = d[t]
        for i in range(LANES):
            means[i] = ZERO
        for k in range(QK):
            xs = row(x[t], k)
            for i in range(LANES):
                means[i] += abs(xs[i])
        for i in range(LANES):
            means[i] = means[i] / np.float32(QK)


def _round(x: Array) -> Array:
    codes: Array = (x >= 0).view(np.uint8)
    return codes


@kernel
def pack(head: Array, codes: Array, blocks: Array) -> None:
    """See `BlockFormat.pack_kernel`."""
    for t in range(len(head)):
        tile, block = codes[t], blocks[t]
        copy_rows(head[t], block[:2])
        for k in range(QK // 8):
            byte = block[2 + k]
            byte[:] = 0
            for bit in range(8):
                code = row(tile, 8 * k + bit)
                for i in range(LANES):
                    byte[i] |= code[i] << bit


@kernel
def unpack(blocks: Array, values: Array) -> None:
    """See `BlockFormat.decode`."""
    for b in range(len(blocks)):
        block, x = blocks[b], values[b]
        d = load_f16(block, 0)
        for k in range(QK // 8):
            byte = block[2 + k]
            for bit in range(8):
                x[8 * k + bit] = d if byte >> bit & 1 else -d


FORMAT = BlockFormat(QType.Q1_0, QK, TYPE_SIZE, fit, pack, unpack, uses_importance=False)


@kernel
def split(blocks: Array, codes: Array, scales: Array, mins: Array, factors: Array) -> None:
    """See `PartFormat`; the one scale is 1."""
    scales[:] = 1
    for b in range(len(blocks)):
        factors[b, 0] = load_f16(blocks[b], 0)
        for k in range(QK):
            codes[b, k] = blocks[b, 2 + k // 8] >> (k % 8) & 1


@kernel
def join(codes: Array, scales: Array, mins: Array, factors: Array, blocks: Array) -> None:
    """See `PartFormat`."""
    for b in range(len(blocks)):
        store_f16(blocks[b], 0, factors[b, 0])
        for k in range(QK):
            blocks[b, 2 + k // 8] |= codes[b, k] << (k % 8)


PARTS = PartFormat(QType.Q1_0, QK, TYPE_SIZE, 1, LEVELS, 1, 1, 0, split, join)
