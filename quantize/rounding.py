"""The ways to choose codes on a grid that is already fitted. So far one: the nearest, as llama.cpp does."""

from __future__ import annotations

import numpy as np

from quantize.blocks.jit import kernel
from quantize.blocks.lanes import LANES, ONE, ZERO, nearest_code, row
from quantize.tensors import Array


@kernel
def nearest(
    x: Array, nmax: np.float32, scales: Array, mins: Array, iscales: Array, lows: Array, codes: Array
) -> None:
    """Codes 0..nmax of the tiles x on the grids scale * code - min.

    Where a scale became 0, ggml leaves the codes of its search, which are the nearest on (x - low) * iscale.

    Args:
        x: [n_tiles, n_sub * n * LANES] float32.
        nmax: the largest code.
        scales, mins, iscales, lows: [n_tiles, n_sub, LANES] float32.
        codes: as x, uint8, overwritten.
    """
    n_tiles, n_sub, _ = scales.shape
    n = x.shape[1] // (n_sub * LANES)
    for t in range(n_tiles):
        for j in range(n_sub):
            scale, minimum, iscale, low = scales[t, j], mins[t, j], iscales[t, j], lows[t, j]
            for k in range(j * n, (j + 1) * n):
                xs, found = row(x[t], k), row(codes[t], k)
                for i in range(LANES):
                    v, d = xs[i], scale[i]
                    code = nearest_code((v + minimum[i]) / d, ZERO, nmax)
                    left = nearest_code(iscale[i] * (v - low[i]), ZERO, nmax)
                    found[i] = np.uint8(left if d == ZERO else code)


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


@kernel
def nearest_searched(x: Array, nmax: np.float32, iscales: Array, lows: Array, codes: Array) -> None:
    """The codes of a search whose result is not coded any further: the nearest to (x - low) * iscale.

    Arguments as in `nearest`, with one sub-block per lane: iscales, lows [n_tiles, 1, LANES].
    """
    for t in range(len(x)):
        iscale, low = iscales[t, 0], lows[t, 0]
        for k in range(x.shape[1] // LANES):
            xs, found = row(x[t], k), row(codes[t], k)
            for i in range(LANES):
                found[i] = np.uint8(nearest_code(iscale[i] * (xs[i] - low[i]), ZERO, nmax))
