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


def coded_chunks(
    weights: Array, importance: Array | None, out: Array, type_size: int, nmax: int
) -> Iterator[Coded]:
    """Fit and round a matrix, chunk by chunk; weights, importance and out are those of `BlockFormat.encode`."""
    lanes = None if importance is None else importance_lanes(importance, QK)
    sigma2 = None if importance is None else block_sigma2(weights)
    search = weighted_search(nmax)
    for chunk in chunks(weights, QK, out, type_size):
        if lanes is None or sigma2 is None:
            codes = np.empty(chunk.x.shape, np.uint8)
            d, m = np.empty((2, len(codes), LANES), np.float32)
            _fit_and_round(chunk.x, search.nmax, d, m, codes)
        else:
            grids = fit_weighted(chunk.x, 1, search, sigma2_of(chunk, sigma2), lanes, chunk.first)
            codes = search_codes(chunk.x, search, grids)
            d, m = grids.scales[:, 0], -grids.mins[:, 0]
        yield Coded(d, m, codes, chunk.blocks)


@kernel
def _fit_and_round(x: Array, nmax: np.float32, d: Array, m: Array, codes: Array) -> None:
    """The grid from min to max, and the codes by adding a half and cutting off."""
    high, inverse = np.empty(LANES, np.float32), np.empty(LANES, np.float32)
    for t in range(len(x)):
        tile, low = x[t], m[t]
        for i in range(LANES):
            low[i] = tile[i]
            high[i] = tile[i]
        for k in range(1, QK):
            xs = row(tile, k)
            for i in range(LANES):
                low[i] = xs[i] if xs[i] < low[i] else low[i]
                high[i] = xs[i] if xs[i] > high[i] else high[i]
        for i in range(LANES):
            scale = (high[i] - low[i]) / nmax
            d[t, i] = scale
            inverse[i] = ONE / scale if scale != ZERO else ZERO
        for k in range(QK):
            xs, found = row(tile, k), row(codes[t], k)
            for i in range(LANES):
                v = (xs[i] - low[i]) * inverse[i] + HALF
                v = v if v < WRAP else ZERO  # infinity and NaN become 0 on the way through ggml's integers
                v = v if v < nmax else nmax
                found[i] = np.uint8(v)
