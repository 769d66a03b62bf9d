"""Q2_K: 2.625 bits per weight. Super-blocks of 256 weights, 16 sub-blocks of 16; value = (d * sc) * code - (dmin * m).

    16 bytes: sc[j] | m[j] << 4 | 64 bytes: codes | float16 d | float16 dmin

    byte l of 32, weights 128 h and on: code[128 h + l] | code[.. + 32] << 2 | code[.. + 64] << 4 | code[.. + 96] << 6

Source: ggml-quants.c, quantize_row_q2_K_ref, quantize_row_q2_K_impl, dequantize_row_q2_K.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from quantize.blocks.affine import (
    Grids,
    code_by_maximum,
    code_by_search,
    codes_to_round,
    fit_plain,
    fit_weighted,
    mean_squares,
    plain_search,
    weighted_search,
)
from quantize.blocks.base import BlockFormat
from quantize.blocks.half import load_f16, store_f16
from quantize.blocks.jit import kernel
from quantize.blocks.lanes import LANES, Chunk, chunks, importance_lanes
from quantize.blocks.rounding import nearest
from quantize.tensors import Array, QType

TYPE_SIZE = 84
QK_K, N_SUB, SUB = 256, 16, 16  # weights of a super-block, its sub-blocks, their weights
CODES, D = 16, 80  # where they begin
NMAX, SC_MAX = 3, 15
PLAIN, WEIGHTED = plain_search(NMAX, -0.5, 0.1, 15, use_mad=True), weighted_search(NMAX)


class Fit(NamedTuple):
    """A fitted chunk."""

    grids: Grids
    d: Array  # float32 [n_tiles, LANES], float16 values
    dmin: Array
    packed: Array  # uint8 [n_tiles, N_SUB, LANES]


def encode(weights: Array, importance: Array | None, out: Array) -> None:
    """See `BlockFormat.encode`."""
    lanes = None if importance is None else importance_lanes(importance, QK_K)
    for chunk in chunks(weights, QK_K, out, TYPE_SIZE):
        grids, d, dmin, packed = fit(chunk, lanes)
        codes = codes_to_round(chunk.x, PLAIN if lanes is None else WEIGHTED, grids)
        nearest(chunk.x, PLAIN.nmax, grids.scales, grids.mins, codes)
        pack(d, dmin, packed, codes, chunk.blocks)


def fit(chunk: Chunk, importance: Array | None) -> Fit:
    """Fit a chunk; importance is laid out by `importance_lanes`."""
    if importance is None:
        grids = fit_plain(chunk.x, N_SUB, PLAIN, rms=False)
        sc, d = code_by_maximum(grids.scales, SC_MAX)
        m, dmin = code_by_maximum(grids.mins, SC_MAX)
    else:
        grids = fit_weighted(chunk.x, N_SUB, WEIGHTED, mean_squares(chunk.x, 1), importance, chunk.first)
        sc, d = code_by_search(grids.scales, grids.sum_w, SC_MAX)
        m, dmin = code_by_search(grids.mins, grids.sum_w, SC_MAX)
    # as in ggml the two are joined unclipped: the code of a negative scale, wrapped round in a uint8_t, spills over
    packed = sc.astype(np.uint8) | m.astype(np.uint8) << 4
    np.multiply(d[:, None], packed & 15, out=grids.scales)
    np.multiply(dmin[:, None], packed >> 4, out=grids.mins)
    return Fit(grids, d, dmin, packed)


@kernel
def pack(d: Array, dmin: Array, packed: Array, codes: Array, blocks: Array) -> None:
    """Tiles of a fit and codes [n_tiles, QK_K * LANES] into blocks [n_blocks, TYPE_SIZE]."""
    for b in range(len(blocks)):
        t, i = b // LANES, b % LANES
        block, tile = blocks[b], codes[t]
        for j in range(N_SUB):
            block[j] = packed[t, j, i]
        for h in range(2):
            for k in range(32):
                byte = tile[(128 * h + k) * LANES + i] | tile[(128 * h + 32 + k) * LANES + i] << 2
                byte |= tile[(128 * h + 64 + k) * LANES + i] << 4 | tile[(128 * h + 96 + k) * LANES + i] << 6
                block[CODES + 32 * h + k] = byte
        store_f16(d[t, i], block, D)
        store_f16(dmin[t, i], block, D + 2)


@kernel
def decode(blocks: Array, out: Array) -> None:
    """See `BlockFormat.decode`."""
    raw, values = blocks.reshape(-1, TYPE_SIZE), out.reshape(-1, QK_K)
    for b in range(len(raw)):
        block, x = raw[b], values[b]
        d, dmin = load_f16(block, D), load_f16(block, D + 2)
        for j in range(N_SUB):
            scale, minimum = d * np.float32(block[j] & 15), dmin * np.float32(block[j] >> 4)
            start, shift = CODES + 32 * (j // 8) + 16 * (j % 2), 2 * (j % 8 // 2)
            part = block[start : start + SUB]
            for k in range(SUB):
                x[SUB * j + k] = scale * np.float32(part[k] >> shift & 3) - minimum


FORMAT = BlockFormat(QType.Q2_K, QK_K, TYPE_SIZE, encode, decode)
