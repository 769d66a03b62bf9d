"""TQ2_0: 2.0625 bits per weight. Blocks of 256 weights; value = d * (code - 1), codes 0..2; no use for an importance.

    64 bytes: byte 32 j + k is code[128 j + k] | code[128 j + k + 32] << 2 | ... + 64] << 4 | ... + 96] << 6 | float16 d

Source: ggml-quants.c, quantize_row_tq2_0_ref, dequantize_row_tq2_0.
"""

from __future__ import annotations

import numpy as np

from quantize.blocks.base import BlockFormat, Grid
from quantize.blocks.error_weights import TileGuide
from quantize.blocks.half import F32, I32, load_f16
from quantize.blocks.jit import kernel
from quantize.blocks.ternary import fit_largest
from quantize.blocks.tiles import LANES, copy_rows, row
from quantize.tensors import Array, QType

QK_K, TYPE_SIZE, D = 256, 66, 64
LEVELS = np.arange(-1, 2, dtype=np.float32)


def fit(x: Array, guide: TileGuide | None) -> Grid:
    """See `BlockFormat`."""
    return fit_largest(x, LEVELS, 0)


@kernel
def pack(head: Array, codes: Array, blocks: Array) -> None:
    """See `BlockFormat.pack_kernel`."""
    for t in range(len(head)):
        tile, block = codes[t], blocks[t]
        copy_rows(head[t], block[D:])
        for j in range(2):
            for k in range(32):
                first, byte = 128 * j + k, block[32 * j + k]
                a, b, c, d = (
                    row(tile, first),
                    row(tile, first + 32),
                    row(tile, first + 64),
                    row(tile, first + 96),
                )
                for i in range(LANES):
                    byte[i] = a[i] | b[i] << 2 | c[i] << 4 | d[i] << 6


@kernel
def unpack(blocks: Array, values: Array) -> None:
    """See `BlockFormat.decode`."""
    for b in range(len(blocks)):
        block, x = blocks[b], values[b]
        d = load_f16(block, D)
        for j in range(2):
            for k in range(32):
                first, byte = 128 * j + k, I32(block[32 * j + k])
                x[first] = F32(I32(byte & I32(3)) - I32(1)) * d
                x[first + 32] = F32(I32(I32(byte >> I32(2)) & I32(3)) - I32(1)) * d
                x[first + 64] = F32(I32(I32(byte >> I32(4)) & I32(3)) - I32(1)) * d
                x[first + 96] = F32(I32(byte >> I32(6)) - I32(1)) * d


FORMAT = BlockFormat(QType.TQ2_0, QK_K, TYPE_SIZE, fit, pack, unpack, uses_importance=False)
