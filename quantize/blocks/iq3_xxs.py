"""IQ3_XXS: 3.0625 bits per weight. 256 weights, eight sub-blocks of 32; groups of four have a code of eight bits.

    float16 d | 64 bytes codes | for each sub-block a uint32: 4 x 7 bits signs | sc << 28

Value = d * (0.5 + sc) / 2 * entry[code], with eight signs of seven.

Source: ggml-quants.c, quantize_row_iq3_xxs_impl, dequantize_row_iq3_xxs.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from quantize.blocks.base import GroupFormat
from quantize.blocks.codebook import codebook
from quantize.blocks.error_weights import TileGuide
from quantize.blocks.half import load_f16
from quantize.blocks.iq3 import N_SUB, QK_K, Fit, fit
from quantize.blocks.iq3_blocks import code_scales, put_group, sign_factors
from quantize.blocks.iq3_search import Search
from quantize.blocks.jit import kernel
from quantize.blocks.lanes import HALF, ZERO
from quantize.blocks.tiles import LANES, store_halves
from quantize.tensors import Array, QType

TYPE_SIZE = 98
LEVELS = np.array([4, 12, 20, 28, 36, 44, 52, 62], np.float32)  # the values of levels, in a decoder
CODES, SIGNS = 2, 66  # where they begin
SEARCH = Search(reach=15, eps=np.float32(1e-8), even_signs=True, all_anew=False)


def encode(x: Array, guide: TileGuide | None) -> Array:
    """See `GroupFormat.encode_kernel`."""
    found = fit(QType.IQ3_XXS, SEARCH, x, guide)
    largest, d, sc = code_scales(found.scales, 1.0125)
    blocks = np.zeros((len(x), TYPE_SIZE, LANES), np.uint8)
    _pack(found, largest, sc, blocks)
    store_halves(d, blocks, 0)
    return blocks


@kernel
def _pack(fit: Fit, largest: Array, sc: Array, blocks: Array) -> None:
    for t in range(len(blocks)):
        codes, signs, block = fit.codes[t], fit.signs[t], blocks[t]
        for j in range(N_SUB):
            for i in range(LANES):
                word = np.uint32(sc[t, j, i]) << np.uint32(28)
                for g in range(4):
                    word |= np.uint32(np.uint32(signs[4 * j + g, i] & np.uint8(127)) << np.uint32(7 * g))
                word = np.uint32(0) if largest[t, i] == ZERO else word
                for g in range(4):
                    block[SIGNS + 4 * j + g, i] = np.uint8(word >> np.uint32(8 * g) & np.uint32(255))
        for k in range(64):
            for i in range(LANES):
                block[CODES + k, i] = np.uint8(0) if largest[t, i] == ZERO else np.uint8(codes[k, i])


@cache
def _entries() -> Array:
    """The codebook as a decoder sees it: float32 [256 * 4]."""
    return LEVELS[codebook(QType.IQ3_XXS).levels].reshape(-1)


def unpack(blocks: Array, values: Array) -> None:
    """See `GroupFormat.unpack_kernel`."""
    _unpack(blocks, _entries(), sign_factors(even=True), values.reshape(-1))


@kernel
def _unpack(blocks: Array, entries: Array, factors: Array, values: Array) -> None:
    for b in range(len(blocks)):
        d = load_f16(blocks[b], 0)
        for j in range(N_SUB):
            word = np.uint32(0)
            for g in range(4):
                word |= np.uint32(np.uint32(blocks[b, SIGNS + 4 * j + g]) << np.uint32(8 * g))
            scale = np.float32(d * (HALF + np.float32(word >> np.uint32(28))) * HALF)
            for g in range(4):
                at, code, to = (
                    8 * int(word >> np.uint32(7 * g) & np.uint32(127)),
                    CODES + 8 * j + 2 * g,
                    QK_K * b + 32 * j + 8 * g,
                )
                put_group(scale, entries, blocks[b, code], factors, at, values, to)
                put_group(scale, entries, blocks[b, code + 1], factors, at + 4, values, to + 4)


FORMAT = GroupFormat(QType.IQ3_XXS, QK_K, TYPE_SIZE, encode, unpack)
