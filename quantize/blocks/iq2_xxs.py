"""IQ2_XXS: 2.0625 bits per weight. 256 weights, eight sub-blocks of 32, of which the groups of 8 have a code.

    float16 d | for each sub-block: 4 bytes codes | uint32: 4 x 7 bits signs | sc << 28

Value = d * (0.5 + sc) / 4 * entry[code], with eight signs of seven.

Source: ggml-quants.c, quantize_row_iq2_xxs_impl, dequantize_row_iq2_xxs.
"""

from __future__ import annotations

import numpy as np

from quantize.blocks.base import GroupFormat
from quantize.blocks.error_weights import TileGuide
from quantize.blocks.half import load_f16
from quantize.blocks.iq2 import QK_K, Search
from quantize.blocks.iq2_blocks import Parts, entries, even_signs, group_scale, parts_of, put_group
from quantize.blocks.jit import kernel
from quantize.blocks.lanes import ZERO
from quantize.blocks.tiles import LANES, store_halves
from quantize.tensors import Array, QType

TYPE_SIZE, N_SUB, SUB = 66, 8, 32
SEARCH = Search(n=SUB, reach=6, even_signs=True, from_qp=True, eps=np.float32(1e-15))


def encode(x: Array, guide: TileGuide | None) -> Array:
    """See `GroupFormat.encode_kernel`."""
    parts = parts_of(QType.IQ2_XXS, SEARCH, x, guide)
    blocks = np.empty((len(x), TYPE_SIZE, LANES), np.uint8)
    store_halves(parts.d, blocks, 0)
    _pack(parts, blocks)
    return blocks


@kernel
def _pack(parts: Parts, blocks: Array) -> None:
    for t in range(len(blocks)):
        for j in range(N_SUB):
            head = 2 + 8 * j
            for i in range(LANES):
                word = np.uint32(parts.sc[t, j, i]) << np.uint32(28)
                for g in range(4):
                    word |= np.uint32(parts.signs[t, 4 * j + g, i]) << np.uint32(7 * g)
                word = np.uint32(0) if parts.largest[t, i] == ZERO else word
                for g in range(4):
                    blocks[t, head + 4 + g, i] = np.uint8(word >> np.uint32(8 * g) & np.uint32(255))
            for g in range(4):
                for i in range(LANES):
                    code = np.uint8(parts.codes[t, 4 * j + g, i])
                    blocks[t, head + g, i] = np.uint8(0) if parts.largest[t, i] == ZERO else code


def unpack(blocks: Array, values: Array) -> None:
    """See `GroupFormat.unpack_kernel`."""
    _unpack(blocks, values, entries(QType.IQ2_XXS), even_signs())


@kernel
def _unpack(blocks: Array, values: Array, entries: Array, even_signs: Array) -> None:
    for b in range(len(blocks)):
        block, x = blocks[b], values[b]
        d = load_f16(block, 0)
        for j in range(N_SUB):
            codes, bytes_ = block[2 + 8 * j : 6 + 8 * j], block[6 + 8 * j : 10 + 8 * j]
            word = np.uint32(0)
            for g in range(4):
                word |= np.uint32(bytes_[g]) << np.uint32(8 * g)
            scale = group_scale(d, int(word >> np.uint32(28)))
            for g in range(4):
                signs = even_signs[word >> np.uint32(7 * g) & np.uint32(127)]
                put_group(scale, entries[codes[g]], signs, x[SUB * j + 8 * g : SUB * j + 8 * (g + 1)])


FORMAT = GroupFormat(QType.IQ2_XXS, QK_K, TYPE_SIZE, encode, unpack, needs_importance=True)
