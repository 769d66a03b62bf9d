"""Q5_0: 5.5 bits per weight. Blocks of 32 weights; value = d * (code - 16).

    float16 d | uint32 qh: bit k is bit 4 of code[k] | 16 bytes: code[k] & 15 | (code[k + 16] & 15) << 4

Source: ggml-quants.c, quantize_row_q5_0_ref, quantize_row_q5_0_impl, dequantize_row_q5_0.
"""

from __future__ import annotations

import numpy as np

from quantize.blocks.base import BlockFormat
from quantize.blocks.half import load_f16, store_f16
from quantize.blocks.jit import kernel
from quantize.blocks.lanes import LANES
from quantize.blocks.legacy import QK, encode_signed
from quantize.tensors import Array, QType

TYPE_SIZE = 22
NMAX = 16


def encode(weights: Array, importance: Array | None, out: Array) -> None:
    """See `BlockFormat.encode`."""
    encode_signed(weights, importance, NMAX, pack, out, TYPE_SIZE)


@kernel
def pack(d: Array, codes: Array, blocks: Array) -> None:
    """Tiles of d [n_tiles, LANES] and codes [n_tiles, QK * LANES] into blocks [n_blocks, TYPE_SIZE]."""
    for b in range(len(blocks)):
        tile, i, block = codes[b // LANES], b % LANES, blocks[b]
        store_f16(d[b // LANES, i], block, 0)
        for k in range(QK // 8):
            high = 0
            for bit in range(8):
                high |= (tile[(8 * k + bit) * LANES + i] >> 4) << bit
            block[2 + k] = high
        for k in range(QK // 2):
            block[6 + k] = tile[k * LANES + i] & 15 | (tile[(k + 16) * LANES + i] & 15) << 4


def decode(blocks: Array, out: Array) -> None:
    """See `BlockFormat.decode`."""
    _unpack(blocks.reshape(-1, TYPE_SIZE), out.reshape(-1, QK))


@kernel
def _unpack(blocks: Array, values: Array) -> None:
    for b in range(len(blocks)):
        block, x = blocks[b], values[b]
        d = load_f16(block, 0)
        for k in range(QK // 2):
            low = np.int32(block[6 + k] & 15 | (block[2 + k // 8] >> (k % 8) & 1) << 4)
            high = np.int32(block[6 + k] >> 4 | (block[4 + k // 8] >> (k % 8) & 1) << 4)
            x[k] = np.float32(low - np.int32(16)) * d
            x[k + 16] = np.float32(high - np.int32(16)) * d


FORMAT = BlockFormat(QType.Q5_0, QK, TYPE_SIZE, encode, decode)
