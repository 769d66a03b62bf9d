"""The weights of the errors that a fit makes least: importances and magnitudes, for the lanes of a tile."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from quantize.blocks.jit import kernel
from quantize.blocks.lanes import ZERO
from quantize.blocks.tiles import LANES, Columns, raw_bytes, row
from quantize.guide import Guide
from quantize.tensors import Array

NOTHING = np.empty((0, 0), np.float32)


class TileGuide(NamedTuple):
    """The part of a `Guide` that belongs to a panel."""

    importance: Array  # float32 [n_columns, block_size]; block b of the panel lies in column b // n_rows
    n_rows: int
    row_squares: (
        Array  # float32 [n_tiles, LANES]: the mean of x*x over the row of each block; see `tile_guide`
    )


NO_GUIDE = TileGuide(NOTHING, 1, NOTHING)
"""The array that kernels take where there is no guide."""


def tile_guide(guide: Guide, columns: Columns, block_size: int, row_squares: Array) -> TileGuide | None:
    """The part of a guide that belongs to a panel, or None where the guide has no importance.

    Args:
        guide: a guide that is checked.
        columns: the block columns of the panel.
        block_size: weights of a block.
        row_squares: [n_rows] float32, the mean of x*x over each row; formats that do not weigh by it
            (`BlockFormat.weighs_rows`) take any.
    """
    if guide.importance is None:
        return None
    first, last = columns
    n_rows = len(row_squares)
    n_tiles = -(-n_rows * (last - first) // LANES)
    return TileGuide(
        guide.importance.reshape(-1, block_size)[first:last],
        n_rows,
        np.resize(row_squares, (n_tiles, LANES)),  # blocks are numbered down the columns: again and again
    )


@kernel
def load_importance(importance: Array, n_rows: int, t: int, k0: int, n: int, w: Array) -> None:
    """Fill w [n * LANES] with the importances of weights k0 .. k0 + n of the blocks in tile t."""
    first, last = t * LANES // n_rows, min((t * LANES + LANES - 1) // n_rows, len(importance) - 1)
    values = importance[first, k0 : k0 + n]
    for k in range(n):
        value, ws = values[k], row(w, k)
        for i in range(LANES):
            ws[i] = value
    for column in range(first + 1, last + 1):  # few tiles reach into the next column
        start, end = column * n_rows - t * LANES, min(LANES, (column + 1) * n_rows - t * LANES)
        values = importance[column, k0 : k0 + n]
        for k in range(n):
            value, ws = values[k], w[k * LANES + start : k * LANES + end]
            for i in range(len(ws)):
                ws[i] = value


@kernel
def spread(n: int, x: Array, sigma2: Array, w: Array) -> None:
    """Multiply the weights w [n * LANES] by sqrt(sigma2 + x*x), sigma2 [LANES]: ggml's `_impl` encoders do."""
    for k in range(n):
        xs, ws = row(x, k), row(w, k)
        for i in range(LANES):
            ws[i] *= np.sqrt(sigma2[i] + xs[i] * xs[i])


@kernel
def square(x: Array, w: Array) -> None:
    """The weights x*x of formats that fit without importances."""
    for k in range(x.size):
        w[k] = x[k] * x[k]


def mean_squares(x: Array, times: float, over: int) -> Array:
    """`times` the sum of x*x of each block, in index order, over `over`: the sigma2 [n_tiles, LANES] of K-quants."""
    sigma2 = np.empty((len(x), LANES), np.float32)
    _mean_squares(x, np.float32(times), np.float32(over), sigma2)
    return sigma2


@kernel
def _mean_squares(x: Array, times: np.float32, over: np.float32, sigma2: Array) -> None:
    n = x.shape[1] // LANES
    for t in range(len(x)):
        sums = sigma2[t]
        for i in range(LANES):
            sums[i] = ZERO
        for k in range(n):
            xs = row(x[t], k)
            for i in range(LANES):
                sums[i] += xs[i] * xs[i]
        for i in range(LANES):
            sums[i] = times * sums[i] / over


def row_mean_squares(weights: Array) -> Array:
    """The mean of x*x over each row, summed in index order: float32 [n_rows].

    weights is [n_rows, n_per_row] float32 or uint16 (bits of bfloat16), C-contiguous.
    """
    sums = np.empty(len(weights), np.float32)
    _row_square_sums(*raw_bytes(weights), sums)
    means: Array = sums / np.float32(weights.shape[1])
    return means


@kernel
def _row_square_sums(raw: Array, wide: bool, sums: Array) -> None:
    if wide:
        _add_row_squares(raw.view(np.uint32), np.uint32(0), sums)
    else:
        _add_row_squares(raw.view(np.uint16), np.uint32(16), sums)


@kernel
def _add_row_squares(bits: Array, shift: np.uint32, sums: Array) -> None:
    n_rows = sums.size
    n_per_row = bits.size // max(1, n_rows)
    together = 4  # rows: a sum alone waits for its last addition, many rows collide in the L1 cache
    acc = np.empty(together, np.float32)
    for first in range(0, n_rows, together):
        acc[:] = ZERO
        if first + together <= n_rows:
            for k in range(n_per_row):
                for i in range(together):
                    v = np.uint32(np.uint32(bits[(first + i) * n_per_row + k]) << shift).view(np.float32)
                    acc[i] += v * v
        else:
            for i in range(n_rows - first):
                for k in range(n_per_row):
                    v = np.uint32(np.uint32(bits[(first + i) * n_per_row + k]) << shift).view(np.float32)
                    acc[i] += v * v
        for i in range(min(together, n_rows - first)):
            sums[first + i] = acc[i]
