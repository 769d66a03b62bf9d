"""IQ4_NL: 4.5 bits per weight. Blocks of 32 weights; value = d * TABLE[code].

    float16 d | 16 bytes: code[k] | code[k + 16] << 4

Source: ggml-quants.c, quantize_iq4_nl, quantize_row_iq4_nl_impl, dequantize_row_iq4_nl.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from quantize.blocks.base import BlockFormat, Grid
from quantize.blocks.error_weights import TileGuide
from quantize.blocks.half import load_f16
from quantize.blocks.iq4 import VALUES, fit_scales, round_to_table
from quantize.blocks.jit import kernel
from quantize.blocks.lanes import ONE, ZERO
from quantize.blocks.nibbles import QK, pack_4
from quantize.blocks.parts import PartFormat
from quantize.blocks.q4_0 import join, split
from quantize.blocks.tiles import LANES, store_halves
from quantize.tensors import Array, QType

TYPE_SIZE = 18


def fit(x: Array, guide: TileGuide | None) -> Grid:
    """See `BlockFormat`."""
    scales = fit_scales(x, guide)
    inverses = np.empty_like(scales)
    _invert(scales.reshape(-1), inverses.reshape(-1))  # codes belong to the unrounded scale
    head = np.empty((len(x), 2, LANES), np.uint8)
    store_halves(scales.reshape(-1, LANES), head, 0)
    return Grid(head, VALUES, scales, None, partial(round_to_table, inverses=inverses))


@kernel
def _invert(scales: Array, inverses: Array) -> None:
    for i in range(scales.size):
        inverse = ONE / scales[i]
        inverses[i] = inverse if scales[i] != ZERO else ZERO


@kernel
def unpack(blocks: Array, values: Array) -> None:
    """See `BlockFormat.decode`."""
    for b in range(len(blocks)):
        block, x = blocks[b], values[b]
        d = load_f16(block, 0)
        for k in range(QK // 2):
            x[k] = d * VALUES[block[2 + k] & 15]
            x[k + 16] = d * VALUES[block[2 + k] >> 4]


FORMAT = BlockFormat(QType.IQ4_NL, QK, TYPE_SIZE, fit, pack_4, unpack)

PARTS = PartFormat(QType.IQ4_NL, QK, TYPE_SIZE, 1, VALUES, 1, 1, 0, split, join)
