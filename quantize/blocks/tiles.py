"""Many blocks side by side: how a matrix is cut into tiles, and how blocks find their place in it.

Kernels work on a *panel*: some block columns (`Columns`) of some rows. Its blocks are numbered down the columns, and a
*tile* holds `LANES` consecutive ones, transposed: weight k of lane i is at `x[k * LANES + i]`. So where the rows are a
multiple of `LANES`, or the panel is one column, all lanes of a tile lie in one column, and nothing depends on the
columns to its right. Other panels have tiles that reach into the next column; only the last tile of a panel can have
lanes without a block, which hold zeros.

Kernels loop over the lanes innermost, so that LLVM makes one vector instruction of what ggml does for 16 (or 8, or 4)
blocks in turn, and every lane keeps the reference's order of additions. Three habits keep those loops vectorised:

- tiles are flat arrays and `LANES` is a constant, so that offsets between rows are constants; a loop over rows takes
  the slice of them first, because only then LLVM sees that no index is negative and has to be wrapped round;
- the state of each lane lies in one flat array of rows (`state[ROW + i]`): LLVM inserts an overlap check for every
  pair of arrays of which one is written, and does not vectorise beyond eight checks;
- a choice is a select (`a if c else b`) whose branches are already computed, and a store is unconditional.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np

from quantize.blocks.half import f16_bits_to_f32, f32_to_f16_bits
from quantize.blocks.jit import JIT, inlined, kernel
from quantize.blocks.lanes import ZERO
from quantize.tensors import Array

LANES = 64 if JIT else 1
"""Blocks of a tile. 64 lanes of 32 weights, their importances and codes are 24 KiB: they stay in the L1 cache."""

PANEL = 1 << 17
"""Weights that go through the stages of an encoder (load, fit, round, pack) together: they stay in the L2 cache."""

Columns = tuple[int, int]
"""A half-open range of block columns of a matrix."""


def row_groups(n_rows: int, n_per_row: int, n_weights: int = PANEL) -> Iterator[slice]:
    """All rows in groups of about `n_weights` weights; each but the last is a multiple of `LANES`, none is smaller."""
    step = max(1, n_weights // n_per_row // LANES) * LANES
    first = 0
    while first < n_rows:
        last = first + step if first + step + LANES <= n_rows else n_rows
        yield slice(first, last)
        first = last


def column_groups(n_rows: int, n_columns: int, block_size: int) -> Iterator[Columns]:
    """All block columns of a group of rows, from left to right, each group a panel."""
    step = max(1, _panel_blocks(block_size) // n_rows)
    for first in range(0, n_columns, step):
        yield first, min(first + step, n_columns)


def room_for(n_weights: int, block_size: int) -> Array:
    """Memory for the tiles of each panel of a matrix in turn, to be passed to `load`."""
    return new_floats(min(n_weights, _panel_blocks(block_size) * block_size) + LANES * block_size)


def _panel_blocks(block_size: int) -> int:
    """Blocks of a panel; of large ones enough that a last tile with empty lanes does not count."""
    return max(PANEL // block_size, 32 * LANES)


def new_floats(n: int) -> Array:
    """Room for n float32 that begins with a cache line, so that no 64-byte vector lies across two."""
    raw = np.empty(n + 16, np.float32)
    start = (-raw.ctypes.data % 64) // 4
    return raw[start : start + n]


aligned_floats = kernel(new_floats)
"""`new_floats` for kernels."""


@inlined
def row(a: Array, k: int) -> Array:
    """Row k of a tile."""
    return a[k * LANES : (k + 1) * LANES]


@kernel
def copy_rows(source: Array, target: Array) -> None:
    """Copy the rows of an array [n, LANES] into the first of another one.

    NumPy's assignment would do; numba compiles, with the first one, seconds of code for the text of an error.
    """
    for k in range(len(source)):
        from_, to = source[k], target[k]
        for i in range(LANES):
            to[i] = from_[i]


def raw_bytes(weights: Array) -> tuple[Array, bool]:
    """A contiguous matrix as kernels take it: flat bytes, and whether they are float32 (else bits of bfloat16).

    Bytes may lie at any address; for other items numba would compile a second kernel where they are not aligned.
    """
    return weights.reshape(-1).view(np.uint8), weights.dtype == np.float32


def load(weights: Array, columns: Columns, block_size: int, room: Array | None = None) -> Array:
    """The tiles of a panel.

    Args:
        weights: [n_rows, n_per_row] float32 or uint16 (bits of bfloat16), C-contiguous: the rows of the panel, whole.
        columns: its block columns.
        block_size: weights of a block, a multiple of 32.
        room: where the tiles are to lie, from `room_for`; None allocates.

    Returns:
        float32 [n_tiles, block_size * LANES].
    """
    n_rows, n_per_row = weights.shape
    n_tiles = -(-n_rows * (columns[1] - columns[0]) // LANES)
    size = n_tiles * block_size * LANES
    x = (new_floats(size) if room is None else room[:size]).reshape(n_tiles, block_size * LANES)
    kernel_of_type = _load_floats if weights.dtype == np.float32 else _load_bfloats
    kernel_of_type(raw_bytes(weights)[0], n_rows, n_per_row // block_size, *columns, block_size, x)
    return x


@kernel
def _load_floats(
    raw: Array, n_rows: int, n_columns: int, first: int, last: int, block_size: int, x: Array
) -> None:
    weights = raw.view(np.float32)
    n_blocks = n_rows * (last - first)
    for t in range(len(x)):
        n_filled = min(LANES, n_blocks - t * LANES)
        for k0 in range(0, block_size, 32):  # 32 rows of the tile at a time: they stay in the L1 cache
            tile = x[t][k0 * LANES : (k0 + 32) * LANES]
            start, step = first * block_size + k0, n_columns * block_size
            _load_32_floats(weights, start, step, block_size, n_rows, t, n_filled, tile)


@kernel
def _load_bfloats(
    raw: Array, n_rows: int, n_columns: int, first: int, last: int, block_size: int, x: Array
) -> None:
    words, lines = raw.view(np.uint64), aligned_floats(32 * LANES)
    n_blocks = n_rows * (last - first)
    for t in range(len(x)):
        n_filled = min(LANES, n_blocks - t * LANES)
        for k0 in range(0, block_size, 32):  # as in `_load_floats`
            tile = x[t][k0 * LANES : (k0 + 32) * LANES]
            start, step = first * block_size + k0, n_columns * block_size
            _load_32_bfloats(words, start, step, block_size, n_rows, t, n_filled, lines, tile)


@kernel
def _load_32_floats(
    weights: Array, start: int, step: int, block_size: int, n_rows: int, t: int, n_filled: int, tile: Array
) -> None:
    column, row = divmod(t * LANES, n_rows)
    for i in range(n_filled):
        o = start + row * step + column * block_size
        line = weights[o : o + 32]
        for k in range(32):
            tile[k * LANES + i] = line[k]
        row += 1
        if row == n_rows:
            column, row = column + 1, 0
    for i in range(n_filled, LANES):
        for k in range(32):
            tile[k * LANES + i] = ZERO


@kernel
def _load_32_bfloats(
    words: Array,
    start: int,
    step: int,
    block_size: int,
    n_rows: int,
    t: int,
    n_filled: int,
    lines: Array,
    tile: Array,
) -> None:
    """Four weights are moved together, and taken apart when they lie in lanes."""
    lanes = lines.view(np.uint64)
    column, row = divmod(t * LANES, n_rows)
    for i in range(n_filled):
        o = (start + row * step + column * block_size) // 4
        line = words[o : o + 8]
        for k in range(8):
            lanes[k * LANES + i] = line[k]
        row += 1
        if row == n_rows:
            column, row = column + 1, 0
    for i in range(n_filled, LANES):
        for k in range(8):
            lanes[k * LANES + i] = np.uint64(0)
    for k in range(8):
        _take_apart(lanes[k * LANES : (k + 1) * LANES], tile[4 * k * LANES : 4 * (k + 1) * LANES])


@kernel
def _take_apart(words: Array, x: Array) -> None:
    for i in range(LANES):
        low, high = np.uint32(words[i] & np.uint64(0xFFFFFFFF)), np.uint32(words[i] >> np.uint64(32))
        x[i] = np.uint32(low << np.uint32(16)).view(np.float32)
        x[LANES + i] = np.uint32(low & np.uint32(0xFFFF0000)).view(np.float32)
        x[2 * LANES + i] = np.uint32(high << np.uint32(16)).view(np.float32)
        x[3 * LANES + i] = np.uint32(high & np.uint32(0xFFFF0000)).view(np.float32)


def unload(x: Array, n_rows: int, columns: Columns, block_size: int) -> Array:
    """The matrix of a panel's tiles, the reverse of `load`: float32 [n_rows, n_columns * block_size]."""
    n_columns = columns[1] - columns[0]
    blocks = x.reshape(-1, block_size, LANES).transpose(0, 2, 1).reshape(-1, block_size)
    panel = blocks[: n_columns * n_rows].reshape(n_columns, n_rows, block_size).transpose(1, 0, 2)
    return panel.reshape(n_rows, n_columns * block_size)


def store(tiles: Array, columns: Columns, blocks: Array) -> None:
    """Write the blocks of a panel to their places.

    Args:
        tiles: uint8 [n_tiles, type_size, LANES]: byte k of lane i at [k, i].
        columns: the block columns of the panel.
        blocks: uint8 [n_rows, row bytes], C-contiguous: the rows of the panel, whole.
    """
    _store(tiles, *columns, blocks.view(_block(tiles.shape[1])))


@cache
def _block(type_size: int) -> np.dtype[Any]:
    """A block as a NumPy type, which makes its size a constant of the kernel that is compiled for it."""
    return np.dtype([("bytes", np.uint8, (type_size,))])


@kernel
def _store(tiles: Array, first: int, last: int, blocks: Array) -> None:
    n_rows = len(blocks)
    n_blocks = n_rows * (last - first)
    for t in range(len(tiles)):
        tile = tiles[t].reshape(-1)
        column, row = divmod(t * LANES, n_rows)
        for i in range(min(LANES, n_blocks - t * LANES)):
            block = blocks[row, first + column]["bytes"]
            for k in range(len(block)):
                block[k] = tile[k * LANES + i]
            row += 1
            if row == n_rows:
                column, row = column + 1, 0


@kernel
def store_halves(values: Array, head: Array, at: int) -> None:
    """Write a value of each block as float16 into its head, and leave in place what a reader will see.

    values is [n_tiles, LANES] float32, head uint8 [n_tiles, n_head, LANES]; the halves go to bytes `at` and `at + 1`.
    """
    bits = np.empty(LANES, np.uint16)
    for t in range(len(head)):
        low, high, v = head[t, at], head[t, at + 1], values[t]
        for i in range(LANES):
            bits[i] = f32_to_f16_bits(v[i])
        for i in range(LANES):
            v[i] = f16_bits_to_f32(bits[i])
        for i in range(LANES):
            low[i] = np.uint8(bits[i] & np.uint16(0xFF))
        for i in range(LANES):
            high[i] = np.uint8(bits[i] >> np.uint16(8))
