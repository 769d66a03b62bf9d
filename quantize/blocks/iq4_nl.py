"""IQ4_NL: 4.5 bits per weight. Blocks of 32 weights; value = d * TABLE[code].

    float16 d | 16 bytes: code[k] | code[k + 16] << 4

Source: ggml-quants.c, quantize_iq4_nl, quantize_row_iq4_nl_impl, dequantize_row_iq4_nl.
"""

from __future__ import annotations

import numpy as np

from quantize.blocks.base import BlockFormat
from quantize.blocks.half import load_f16
from quantize.blocks.iq4 import VALUES, fit, round_to_table
from quantize.blocks.jit import kernel
from quantize.blocks.lanes import chunks, importance_lanes
from quantize.blocks.legacy import QK
from quantize.blocks.q4_0 import pack
from quantize.tensors import Array, QType

TYPE_SIZE = 18


def encode(weights: Array, importance: Array | None, out: Array) -> None:
    """See `BlockFormat.encode`."""
    lanes = None if importance is None else importance_lanes(importance, QK)
    for chunk in chunks(weights, QK, out, TYPE_SIZE):
        scales = fit(chunk.x, lanes, chunk.first)
        inverses = np.divide(
            1, scales, out=np.zeros_like(scales), where=scales != 0
        )  # codes: with the unrounded scale
        codes = np.empty(chunk.x.shape, np.uint8)
        round_to_table(chunk.x, inverses, codes)
        pack(scales[:, 0], codes, chunk.blocks)


def decode(blocks: Array, out: Array) -> None:
    """See `BlockFormat.decode`."""
    _unpack(blocks.reshape(-1, TYPE_SIZE), out.reshape(-1, QK))


@kernel
def _unpack(blocks: Array, values: Array) -> None:
    for b in range(len(blocks)):
        block, x = blocks[b], values[b]
        d = load_f16(block, 0)
        for k in range(QK // 2):
            x[k] = d * VALUES[block[2 + k] & 15]
            x[k + 16] = d * VALUES[block[2 + k] >> 4]


FORMAT = BlockFormat(QType.IQ4_NL, QK, TYPE_SIZE, encode, decode)
