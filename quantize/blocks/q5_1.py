"""Q5_1: 6 bits per weight. Blocks of 32 weights; value = d * code + m.

    float16 d | float16 m | 4 bytes: bit l is bit 4 of code[l] | 16 bytes: code[l] & 15 | (code[16 + l] & 15) << 4

Source: ggml-quants.c, quantize_row_q5_1_ref, quantize_row_q5_1_impl, dequantize_row_q5_1.
"""

from __future__ import annotations

import numpy as np

from quantize.blocks.base import BlockFormat
from quantize.blocks.half import load_f16, store_f16
from quantize.blocks.jit import kernel
from quantize.blocks.lanes import LANES, aligned_floats, load, raw_bytes
from quantize.blocks.legacy import QK
from quantize.blocks.legacy_affine import coded_chunks, fit_and_round
from quantize.tensors import Array, QType

TYPE_SIZE = 24
NMAX = 31


def encode(weights: Array, importance: Array | None, out: Array) -> None:
    """See `BlockFormat.encode`."""
    if importance is None:
        raw, wide = raw_bytes(weights)
        _encode_plain(raw, wide, out.reshape(-1, TYPE_SIZE))
        return
    for coded in coded_chunks(weights, importance, out, TYPE_SIZE, NMAX):
        pack(*coded)


@kernel
def _encode_plain(raw: Array, wide: bool, blocks: Array) -> None:
    x, codes = aligned_floats(QK * LANES), np.empty((1, QK * LANES), np.uint8)
    d, m = np.empty((1, LANES), np.float32), np.empty((1, LANES), np.float32)
    for first in range(0, len(blocks), LANES):
        load(raw, wide, first, len(blocks), QK, x)
        fit_and_round(x, np.float32(NMAX), d[0], m[0], codes[0])
        pack(d, m, codes, blocks[first : first + LANES])


@kernel
def pack(d: Array, m: Array, codes: Array, blocks: Array) -> None:
    """Tiles of d and m [n_tiles, LANES] and codes [n_tiles, QK * LANES] into blocks [n_blocks, TYPE_SIZE]."""
    for b in range(len(blocks)):
        t, i = b // LANES, b % LANES
        block, tile = blocks[b], codes[t]
        store_f16(d[t, i], block, 0)
        store_f16(m[t, i], block, 2)
        high = np.uint32(0)
        for k in range(QK // 2):
            first, second = tile[k * LANES + i], tile[(k + QK // 2) * LANES + i]
            block[8 + k] = first & 15 | (second & 15) << 4
            high |= np.uint32(np.uint32(first >> 4) << np.uint32(k))
            high |= np.uint32(np.uint32(second >> 4) << np.uint32(k + QK // 2))
        for byte in range(4):
            block[4 + byte] = np.uint8(high >> np.uint32(8 * byte) & np.uint32(255))


@kernel
def decode(blocks: Array, out: Array) -> None:
    """See `BlockFormat.decode`."""
    raw, values = blocks.reshape(-1, TYPE_SIZE), out.reshape(-1, QK)
    for b in range(len(raw)):
        block, x = raw[b], values[b]
        d, m = load_f16(block, 0), load_f16(block, 2)
        for k in range(QK // 2):
            first = block[8 + k] & 15 | (block[4 + k // 8] >> (k % 8) & 1) << 4
            second = block[8 + k] >> 4 | (block[6 + k // 8] >> (k % 8) & 1) << 4
            x[k] = d * np.float32(first) + m
            x[k + QK // 2] = d * np.float32(second) + m


FORMAT = BlockFormat(QType.Q5_1, QK, TYPE_SIZE, encode, decode)
