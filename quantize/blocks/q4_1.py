"""Q4_1: 5 bits per weight. Blocks of 32 weights; value = d * code + m.

    float16 d | float16 m | 16 bytes: code[l] | code[16 + l] << 4

Source: ggml-quants.c, quantize_row_q4_1_ref, quantize_row_q4_1_impl, dequantize_row_q4_1.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from quantize.blocks.affine import weighted_search
from quantize.blocks.base import BlockFormat
from quantize.blocks.half import load_f16
from quantize.blocks.jit import kernel
from quantize.blocks.legacy import fit_scale_and_min
from quantize.blocks.nibbles import QK, pack_4
from quantize.tensors import Array, QType

TYPE_SIZE = 20
LEVELS = np.arange(16, dtype=np.float32)


@kernel
def unpack(blocks: Array, values: Array) -> None:
    """See `BlockFormat.decode`."""
    for b in range(len(blocks)):
        block, x = blocks[b], values[b]
        d, m = load_f16(block, 0), load_f16(block, 2)
        for k in range(QK // 2):
            x[k] = d * np.float32(block[4 + k] & 15) + m
            x[k + QK // 2] = d * np.float32(block[4 + k] >> 4) + m


FORMAT = BlockFormat(
    QType.Q4_1,
    QK,
    TYPE_SIZE,
    partial(fit_scale_and_min, levels=LEVELS, weighted=weighted_search(15)),
    pack_4,
    unpack,
    weighs_rows=True,
)
