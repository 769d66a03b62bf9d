"""Q4_0: 4.5 bits per weight. Blocks of 32 weights; value = d * (code - 8).

    float16 d | 16 bytes: code[k] | code[k + 16] << 4

Source: ggml-quants.c, quantize_row_q4_0_ref, quantize_row_q4_0_impl, dequantize_row_q4_0.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from quantize.blocks.base import BlockFormat
from quantize.blocks.half import load_f16
from quantize.blocks.jit import kernel
from quantize.blocks.legacy import fit_scale
from quantize.blocks.nibbles import QK, pack_4
from quantize.blocks.parts import PartFormat, store_f16
from quantize.tensors import Array, QType

TYPE_SIZE = 18
LEVELS = np.arange(-8, 8, dtype=np.float32)


@kernel
def unpack(blocks: Array, values: Array) -> None:
    """See `BlockFormat.decode`."""
    for b in range(len(blocks)):
        block, x = blocks[b], values[b]
        d = load_f16(block, 0)
        for k in range(QK // 2):
            x[k] = np.float32(np.int32(block[2 + k] & 15) - np.int32(8)) * d
            x[k + 16] = np.float32(np.int32(block[2 + k] >> 4) - np.int32(8)) * d


FORMAT = BlockFormat(
    QType.Q4_0, QK, TYPE_SIZE, partial(fit_scale, levels=LEVELS), pack_4, unpack, weighs_rows=True
)


@kernel
def split(blocks: Array, codes: Array, scales: Array, mins: Array, factors: Array) -> None:
    """See `PartFormat`; the one scale is 1."""
    scales[:] = 1
    for b in range(len(blocks)):
        factors[b, 0] = load_f16(blocks[b], 0)
        for k in range(QK // 2):
            byte = blocks[b, 2 + k]
            codes[b, k], codes[b, k + 16] = byte & 15, byte >> 4


@kernel
def join(codes: Array, scales: Array, mins: Array, factors: Array, blocks: Array) -> None:
    """See `PartFormat`."""
    for b in range(len(blocks)):
        store_f16(blocks[b], 0, factors[b, 0])
        for k in range(QK // 2):
            blocks[b, 2 + k] = codes[b, k] | codes[b, k + 16] << 4


PARTS = PartFormat(QType.Q4_0, QK, TYPE_SIZE, 1, LEVELS, 1, 1, 0, split, join)
