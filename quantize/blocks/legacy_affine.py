"""What Q4_1 and Q5_1 share: blocks of 32 weights, value = d * code + m, where d and m are float16.

The codes belong to the unrounded scale and min; they are not chosen anew for the float16 values.
Source: ggml-quants.c, quantize_row_q{4,5}_1_ref, quantize_row_q{4,5}_1_impl.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from quantize.blocks.affine import fit_weighted, search_codes, weighted_search
from quantize.blocks.jit import kernel
from quantize.blocks.lanes import HALF, LANES, ONE, ZERO, chunks, importance_lanes, row
from quantize.blocks.legacy import QK, block_sigma2, sigma2_of
from quantize.tensors import Array

WRAP = np.float32(256)


class Coded(NamedTuple):
    """Blocks of a chunk, ready to be packed."""

    d: Array  # float32 [n_tiles, LANES]
    m: Array
    codes: Array  # uint8 [n_tiles, QK * LANES]
    blocks: Array  # uint8 [n_blocks, type_size]: where they go


def coded_chunks(weights: Array, importance: Array, out: Array, type_size: int, nmax: int) -> Iterator[Coded]:
    """Fit with importances and round, chunk by chunk; weights, importance and out as in `BlockFormat.encode`."""
    lanes, sigma2, search = importance_lanes(importance, QK), block_sigma2(weights), weighted_search(nmax)
    for chunk in chunks(weights, QK, out, type_size):
        grids = fit_weighted(chunk.x, 1, search, sigma2_of(chunk, sigma2), lanes, chunk.first)
        codes = search_codes(chunk.x, search, grids)
        yield Coded(grids.scales[:, 0], -grids.mins[:, 0], codes, chunk.blocks)


@kernel
def fit_and_round(x: Array, nmax: np.float32, d: Array, m: Array, codes: Array) -> None:
    """Fit a tile x [QK * LANES] without importances, from the least to the greatest weight, and cut off the codes.

    d, m [LANES] float32 and codes [QK * LANES] uint8 are overwritten.
    """
    inverse = np.empty(LANES, np.float32)
    for i in range(LANES):
        low, high = x[i], x[i]
        for k in range(QK):
            v = x[k * LANES + i]
            low = v if v < low else low
            high = v if v > high else high
        m[i] = low
        d[i] = (high - low) / nmax
    for i in range(LANES):
        inverse[i] = ONE / d[i] if d[i] != ZERO else ZERO
    for k in range(QK):
        xs, found = row(x, k), row(codes, k)
        for i in range(LANES):
            v = (xs[i] - m[i]) * inverse[i] + HALF
            v = v if v < WRAP else ZERO  # infinity and NaN become 0 on the way through ggml's integers
            found[i] = np.uint8(v if v < nmax else nmax)
