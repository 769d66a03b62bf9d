"""IQ3_S: 3.4375 bits per weight. 256 weights, eight sub-blocks of 32; groups of four have a code of nine bits.

    float16 d | 64 bytes: code & 255 | 8 bytes: code >> 8, a bit each | 32 bytes signs | 4 bytes: scales

Byte j of the scales is sc[2 j] | sc[2 j + 1] << 4.

Value = d * (1 + 2 * sc) * entry[code], with a sign.

ggml's encoder skips sub-blocks of nothing but zeros when it writes the lower bits of codes and the signs, so that those
of the sub-blocks behind stand one sub-block too early and are decoded wrongly. The bytes are the same here.

Source: ggml-quants.c, quantize_row_iq3_s_impl, dequantize_row_iq3_s.
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
from quantize.blocks.lanes import ONE, ZERO
from quantize.blocks.tiles import LANES, store_halves
from quantize.tensors import Array, QType

TYPE_SIZE = 110
CODES, HIGH_BITS, SIGNS, SCALES = 2, 66, 74, 106  # where they begin
SEARCH = Search(reach=9, eps=np.float32(1e-45), even_signs=False, all_anew=True)


def encode(x: Array, guide: TileGuide | None) -> Array:
    """See `GroupFormat.encode_kernel`."""
    found = fit(QType.IQ3_S, SEARCH, x, guide)
    largest, d, sc = code_scales(found.scales, 1.033)
    blocks = np.zeros((len(x), TYPE_SIZE, LANES), np.uint8)
    _pack(found, largest, sc, blocks)
    store_halves(d, blocks, 0)
    return blocks


@kernel
def _pack(fit: Fit, largest: Array, sc: Array, blocks: Array) -> None:
    for t in range(len(blocks)):
        codes, signs, block = fit.codes[t], fit.signs[t], blocks[t]
        for i in range(LANES):
            place = 0
            for j in range(N_SUB):
                if fit.is_zero[t, j, i]:
                    continue
                for k in range(8):
                    code = codes[8 * j + k, i]
                    block[CODES + 8 * place + k, i] = np.uint8(code & np.uint16(255))
                    block[HIGH_BITS + j, i] |= np.uint8(code >> np.uint16(8)) << np.uint8(k)
                for g in range(4):
                    block[SIGNS + 4 * place + g, i] = signs[4 * j + g, i]
                place += 1
        for j in range(N_SUB // 2):
            for i in range(LANES):
                both = np.uint8(sc[t, 2 * j, i] | sc[t, 2 * j + 1, i] << np.uint8(4))
                block[SCALES + j, i] = np.uint8(0) if largest[t, i] == ZERO else both


@cache
def _entries() -> Array:
    """The codebook as a decoder sees it: float32 [512 * 4]."""
    entries: Array = 2 * codebook(QType.IQ3_S).levels.astype(np.float32) + 1
    return entries.reshape(-1)


def unpack(blocks: Array, values: Array) -> None:
    """See `GroupFormat.unpack_kernel`."""
    _unpack(blocks, _entries(), sign_factors(even=False), values.reshape(-1))


@kernel
def _unpack(blocks: Array, entries: Array, factors: Array, values: Array) -> None:
    for b in range(len(blocks)):
        d = load_f16(blocks[b], 0)
        for j in range(N_SUB):
            sc = blocks[b, SCALES + j // 2] >> (4 * (j % 2)) & 15
            scale = np.float32(d * (ONE + np.float32(2 * sc)))
            high = int(blocks[b, HIGH_BITS + j])
            for g in range(4):
                at, code, to = (
                    8 * int(blocks[b, SIGNS + 4 * j + g]),
                    CODES + 8 * j + 2 * g,
                    QK_K * b + 32 * j + 8 * g,
                )
                first = int(blocks[b, code]) | high << (8 - 2 * g) & 256
                second = int(blocks[b, code + 1]) | high << (7 - 2 * g) & 256
                put_group(scale, entries, first, factors, at, values, to)
                put_group(scale, entries, second, factors, at + 4, values, to + 4)


FORMAT = GroupFormat(QType.IQ3_S, QK_K, TYPE_SIZE, encode, unpack)
