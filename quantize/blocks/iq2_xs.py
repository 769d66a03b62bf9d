"""IQ2_XS: 2.3125 bits per weight. 256 weights, sixteen sub-blocks of 16, each two groups of 8 with a code.

    float16 d | 32 uint16: code | 7 bits signs << 9 | 8 bytes: sc[2 j] | sc[2 j + 1] << 4

Value = d * (0.5 + sc) / 4 * entry[code], with eight signs of seven.

Source: ggml-quants.c, quantize_row_iq2_xs_impl, dequantize_row_iq2_xs.
"""

from __future__ import annotations

import numpy as np

from quantize.blocks.base import GroupFormat
from quantize.blocks.error_weights import TileGuide
from quantize.blocks.half import load_f16
from quantize.blocks.iq2 import N_GROUPS, QK_K, Search
from quantize.blocks.iq2_blocks import Parts, entries, even_signs, group_scale, parts_of, put_group
from quantize.blocks.jit import kernel
from quantize.blocks.lanes import ZERO
from quantize.blocks.tiles import LANES, store_halves
from quantize.tensors import Array, QType

TYPE_SIZE, SUB, SCALES = 74, 16, 66  # where the scales begin
SEARCH = Search(n=SUB, reach=9, even_signs=True, from_qp=False, eps=np.float32(1e-15))


def encode(x: Array, guide: TileGuide | None) -> Array:
    """See `GroupFormat.encode_kernel`."""
    parts = parts_of(QType.IQ2_XS, SEARCH, x, guide)
    blocks = np.empty((len(x), TYPE_SIZE, LANES), np.uint8)
    store_halves(parts.d, blocks, 0)
    _pack(parts, blocks)
    return blocks


@kernel
def _pack(parts: Parts, blocks: Array) -> None:
    for t in range(len(blocks)):
        for g in range(N_GROUPS):
            for i in range(LANES):
                word = np.uint16(parts.codes[t, g, i] | np.uint16(parts.signs[t, g, i]) << np.uint16(9))
                word = np.uint16(0) if parts.largest[t, i] == ZERO else word
                blocks[t, 2 + 2 * g, i] = np.uint8(word & np.uint16(255))
                blocks[t, 3 + 2 * g, i] = np.uint8(word >> np.uint16(8))
        for j in range(8):
            for i in range(LANES):
                blocks[t, SCALES + j, i] = parts.sc[t, 2 * j, i] | parts.sc[t, 2 * j + 1, i] << np.uint8(4)


def unpack(blocks: Array, values: Array) -> None:
    """See `GroupFormat.unpack_kernel`."""
    _unpack(blocks, values, entries(QType.IQ2_XS), even_signs())


@kernel
def _unpack(blocks: Array, values: Array, entries: Array, even_signs: Array) -> None:
    for b in range(len(blocks)):
        block, x = blocks[b], values[b]
        d = load_f16(block, 0)
        for j in range(QK_K // SUB):
            scale = group_scale(d, block[SCALES + j // 2] >> (4 * (j % 2)) & 15)
            for g in range(2 * j, 2 * j + 2):
                word = np.uint32(block[2 + 2 * g]) | np.uint32(block[3 + 2 * g]) << np.uint32(8)
                signs = even_signs[word >> np.uint32(9)]
                put_group(scale, entries[word & np.uint32(511)], signs, x[8 * g : 8 * (g + 1)])


FORMAT = GroupFormat(QType.IQ2_XS, QK_K, TYPE_SIZE, encode, unpack, needs_importance=True)
