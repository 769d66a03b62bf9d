"""Q5_1: 6 bits per weight. Blocks of 32 weights; value = d * code + m.

    float16 d | float16 m | 4 bytes: bit l is bit 4 of code[l] | 16 bytes: code[l] & 15 | (code[16 + l] & 15) << 4

Source: ggml-quants.c, quantize_row_q5_1_ref, quantize_row_q5_1_impl, dequantize_row_q5_1.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from quantize.blocks.affine import weighted_search
from quantize.blocks.base import BlockFormat
from quantize.blocks.half import load_f16
from quantize.blocks.jit import kernel
from quantize.blocks.legacy import fit_scale_and_min
from quantize.blocks.nibbles import QK, codes_of_5, pack_5
from quantize.tensors import Array, QType

TYPE_SIZE = 24
LEVELS = np.arange(32, dtype=np.float32)


@kernel
def unpack(blocks: Array, values: Array) -> None:
    """See `BlockFormat.decode`."""
    for b in range(len(blocks)):
        block, x = blocks[b], values[b]
        d, m = load_f16(block, 0), load_f16(block, 2)
        for k in range(QK // 2):
            low, high = codes_of_5(block, 4, k)
            x[k] = d * np.float32(low) + m
            x[k + QK // 2] = d * np.float32(high) + m


FORMAT = BlockFormat(
    QType.Q5_1,
    QK,
    TYPE_SIZE,
    partial(fit_scale_and_min, levels=LEVELS, weighted=weighted_search(31)),
    pack_5,
    unpack,
    weighs_rows=True,
)
