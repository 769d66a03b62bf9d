"""What the formats of 32 weights share: sigma2 is that of the whole row, and codes are not rounded anew.

Source: ggml-quants.c, quantize_row_q{4,5}_{0,1}_ref and _impl.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from quantize.blocks.jit import kernel
from quantize.blocks.lanes import (
    HALF,
    LANES,
    ONE,
    ZERO,
    Chunk,
    chunks,
    importance_lanes,
    raw_bytes,
    row_square_sums,
)
from quantize.blocks.qx import find_largest
from quantize.blocks.signed import fit, search_codes
from quantize.tensors import Array

QK = 32


def block_sigma2(weights: Array) -> Array:
    """For each block the mean of x*x of its row, summed in index order: float32 [n_blocks + LANES], the rest 0."""
    sums = np.empty(len(weights), np.float32)
    row_square_sums(*raw_bytes(weights), sums)
    n_per_row = weights.shape[1]
    found: Array = np.pad(np.repeat(sums / np.float32(n_per_row), n_per_row // QK), (0, LANES))
    return found


def sigma2_of(chunk: Chunk, of_blocks: Array) -> Array:
    """The part of `block_sigma2` that belongs to a chunk: float32 [n_tiles, LANES]."""
    return of_blocks[chunk.first : chunk.first + len(chunk.x) * LANES].reshape(-1, LANES)


def encode_signed(
    weights: Array,
    importance: Array | None,
    nmax: int,
    pack: Callable[[Array, Array, Array], None],
    out: Array,
    type_size: int,
) -> None:
    """Encode as Q4_0 (nmax 8) or Q5_0 (nmax 16), which differ in how they pack."""
    lanes = None if importance is None else importance_lanes(importance, QK)
    sigma2 = None if importance is None else block_sigma2(weights)
    for chunk in chunks(weights, QK, out, type_size):
        codes = np.empty(chunk.x.shape, np.uint8)
        if sigma2 is None:
            d = np.empty((len(chunk.x), LANES), np.float32)
            _fit_and_round(chunk.x, np.float32(nmax), d, codes)
        else:
            grids = fit(chunk.x, 1, nmax, lanes, chunk.first, sigma2_of(chunk, sigma2))
            d = grids.scales[:, 0]
            search_codes(chunk.x, np.float32(nmax), grids.iscales, codes)
        pack(d, codes, chunk.blocks)


@kernel
def _fit_and_round(x: Array, nmax: np.float32, d: Array, codes: Array) -> None:
    """Without importances: the largest magnitude becomes code 0, and codes are rounded half up."""
    state = np.empty(LANES, np.float32)
    above, top = nmax + HALF, np.int32(nmax + nmax) - np.int32(1)
    for t in range(len(d)):
        find_largest(QK, x[t], state)
        scale = d[t]
        for i in range(LANES):
            v = state[i] / -nmax
            inverse = ONE / v
            scale[i] = v
            state[i] = inverse if v != ZERO else ZERO
        for k in range(QK):
            tile, row = x[t][k * LANES : (k + 1) * LANES], codes[t][k * LANES : (k + 1) * LANES]
            for i in range(LANES):
                v = tile[i] * state[i] + above
                code = np.int32(
                    v if (v > ZERO) & (v < np.float32(64)) else ZERO
                )  # d may have no finite inverse
                row[i] = np.uint8(code if code < top else top)
