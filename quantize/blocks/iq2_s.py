"""IQ2_S: 2.5625 bits per weight. 256 weights, sixteen sub-blocks of 16, each two groups of 8 with a code.

    float16 d | 32 bytes: code & 255 | 32 bytes signs | 8 bytes: code >> 8, two bits each
    | 8 bytes: sc[2 j] | sc[2 j + 1] << 4

Value = d * (0.5 + sc) / 4 * entry[code], with eight signs. It can be fitted without importances.

Source: ggml-quants.c, quantize_row_iq2_s_impl, dequantize_row_iq2_s.
"""

from __future__ import annotations

import numpy as np

from quantize.blocks.base import GroupFormat
from quantize.blocks.error_weights import TileGuide
from quantize.blocks.half import load_f16
from quantize.blocks.iq2 import N_GROUPS, QK_K, Search
from quantize.blocks.iq2_blocks import Parts, entries, group_scale, parts_of, put_group
from quantize.blocks.jit import kernel
from quantize.blocks.tiles import LANES, store_halves
from quantize.tensors import Array, QType

TYPE_SIZE, SUB = 82, 16
CODES, SIGNS, HIGH, SCALES = 2, 34, 66, 74  # where they begin
SEARCH = Search(n=SUB, reach=9, even_signs=False, from_qp=False, eps=np.float32(1e-8))
SHRINK = 0.9875  # of d


def encode(x: Array, guide: TileGuide | None) -> Array:
    """See `GroupFormat.encode_kernel`."""
    parts = parts_of(QType.IQ2_S, SEARCH, x, guide, 2, SHRINK)
    blocks = np.empty((len(x), TYPE_SIZE, LANES), np.uint8)
    store_halves(parts.d, blocks, 0)
    _pack(parts, blocks)
    return blocks


@kernel
def _pack(parts: Parts, blocks: Array) -> None:
    for t in range(len(blocks)):
        block, codes = blocks[t], parts.codes[t]
        for g in range(N_GROUPS):
            for i in range(LANES):
                block[CODES + g, i] = np.uint8(codes[g, i] & np.uint16(255))
                block[SIGNS + g, i] = parts.signs[t, g, i]
        for j in range(8):
            for i in range(LANES):
                high = np.uint16(0)
                for g in range(4):
                    high |= np.uint16(codes[4 * j + g, i] >> np.uint16(8)) << np.uint16(2 * g)
                block[HIGH + j, i] = np.uint8(high)
                block[SCALES + j, i] = parts.sc[t, 2 * j, i] | parts.sc[t, 2 * j + 1, i] << np.uint8(4)


def unpack(blocks: Array, values: Array) -> None:
    """See `GroupFormat.unpack_kernel`."""
    _unpack(blocks, values, entries(QType.IQ2_S))


@kernel
def _unpack(blocks: Array, values: Array, entries: Array) -> None:
    for b in range(len(blocks)):
        block, x = blocks[b], values[b]
        d = load_f16(block, 0)
        for j in range(QK_K // SUB):
            scale = group_scale(d, block[SCALES + j // 2] >> (4 * (j % 2)) & 15)
            for g in range(2 * j, 2 * j + 2):
                high = np.uint32(block[HIGH + g // 4]) >> np.uint32(2 * (g % 4)) & np.uint32(3)
                code = np.uint32(block[CODES + g]) | high << np.uint32(8)
                put_group(scale, entries[code], block[SIGNS + g], x[8 * g : 8 * (g + 1)])


FORMAT = GroupFormat(QType.IQ2_S, QK_K, TYPE_SIZE, encode, unpack)
