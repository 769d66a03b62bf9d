"""The ways to choose codes on a grid that is already fitted. So far one: the nearest, as llama.cpp does."""

from __future__ import annotations

import numpy as np

from quantize.blocks.jit import kernel
from quantize.blocks.lanes import LANES, ONE, ZERO, nearest_code, row
from quantize.tensors import Array


@kernel
def nearest(x: Array, nmax: np.float32, scales: Array, mins: Array, codes: Array) -> None:
    """Codes 0..nmax of the tiles x on the grids scale * code - min.

    Args:
        x: [n_tiles, n_sub * n * LANES] float32.
        nmax: the largest code.
        scales, mins: [n_tiles, n_sub, LANES] float32.
        codes: as x, uint8; overwritten, but left as they are (those of the search, in ggml) where a scale is 0.
    """
    n_tiles, n_sub, _ = scales.shape
    n = x.shape[1] // (n_sub * LANES)
    for t in range(n_tiles):
        for j in range(n_sub):
            scale, minimum = scales[t, j], mins[t, j]
            for k in range(j * n, (j + 1) * n):
                xs, found = row(x[t], k), row(codes[t], k)
                for i in range(LANES):
                    d, old = scale[i], found[i]
                    code = nearest_code((xs[i] + minimum[i]) / d, ZERO, nmax)
                    found[i] = old if d == ZERO else np.uint8(code)


@kernel
def nearest_signed(x: Array, nmax: np.float32, scales: Array, codes: Array) -> None:
    """Codes 0..2 * nmax - 1 of the tiles x on the grids scale * (code - nmax).

    Args:
        x: [n_tiles, n_sub * n * LANES] float32.
        nmax: the lowest code stands for -nmax.
        scales: [n_tiles, n_sub, LANES] float32.
        codes: as x, uint8; overwritten, but left as they are (those of the search, in ggml) where a scale is 0.
    """
    n_tiles, n_sub, _ = scales.shape
    n = x.shape[1] // (n_sub * LANES)
    for t in range(n_tiles):
        for j in range(n_sub):
            scale = scales[t, j]
            for k in range(j * n, (j + 1) * n):
                tile, row = x[t][k * LANES : (k + 1) * LANES], codes[t][k * LANES : (k + 1) * LANES]
                for i in range(LANES):
                    d, old = scale[i], np.int32(row[i])
                    code = np.int32(nearest_code(tile[i] / d, -nmax, nmax - ONE) + nmax)
                    row[i] = np.uint8(old if d == ZERO else code)
