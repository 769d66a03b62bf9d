"""Many blocks side by side: the tile in which kernels work, and ggml's arithmetic for one lane of it.

A tile holds `LANES` consecutive blocks of a matrix, transposed: weight k of lane i is at `x[k * LANES + i]`. Kernels
loop over the lanes innermost, so that LLVM makes one vector instruction of what ggml does for 16 (or 8, or 4) blocks in
turn, and every lane keeps the reference's order of additions. Three habits keep those loops vectorised:

- tiles are flat arrays and `LANES` is a constant, so that offsets between rows are constants; a loop over rows takes
  the slice of them first, because only then LLVM sees that no index is negative and has to be wrapped round;
- what is known of each lane lies in one flat array of rows (`state[ROW + i]`), because LLVM compares the bounds of
  every two arrays of which one is written before it dares, and gives up at eight comparisons;
- a choice is a select (`a if c else b`) whose branches are already computed, and a store is unconditional.

Constants are np.float32 and np.int32, so that neither numba nor NumPy widens (the source also runs as plain Python).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from quantize.blocks.half import f16_bits_to_f32, f32_to_f16_bits
from quantize.blocks.jit import JIT, inlined, kernel
from quantize.tensors import Array

LANES = 64 if JIT else 1
"""Blocks of a tile. 64 lanes of 32 weights, their importances and codes are 24 KiB: they stay in the L1 cache."""

CHUNK = 1 << 19
"""Weights that go through the stages of an encoder (load, fit, round, pack) together."""

ZERO, ONE, HALF = np.float32(0), np.float32(1), np.float32(0.5)
MAGIC = np.float32(12582912.0)  # 1.5 * 2^23: adding it leaves the nearest integer in the low bits
MAGIC_FIELD, MAGIC_EXPONENT = np.int32(0x007FFFFF), np.int32(0x4B000000)
BYTE = np.int32(255)


@inlined
def nearest_int(v: np.float32) -> np.float32:
    """ggml's `nearest_int`, as a float: half to even for |v| < 2^22, the same wrapped values beyond, 0 for NaN."""
    field = np.int32(np.float32(v + MAGIC).view(np.int32) & MAGIC_FIELD)
    return np.float32(np.int32(field | MAGIC_EXPONENT).view(np.float32) - MAGIC)


@inlined
def nearest_code(v: np.float32, low: np.float32, high: np.float32) -> np.float32:
    """`nearest_int` clipped to low..high; clipped as integers, which keeps the float units free for the sums."""
    least, most = np.float32(low + MAGIC).view(np.int32), np.float32(high + MAGIC).view(np.int32)
    bits = np.int32(np.int32(np.float32(v + MAGIC).view(np.int32) & MAGIC_FIELD) | MAGIC_EXPONENT)
    bits = bits if bits > least else least
    bits = bits if bits < most else most
    return np.float32(np.int32(bits).view(np.float32) - MAGIC)


@inlined
def clipped_code(v: np.float32, high: np.float32) -> np.float32:
    """v clipped to 0..high, then rounded half to even; the same as `nearest_code` wherever that does not wrap."""
    code = v + MAGIC
    code = code if code > MAGIC else MAGIC  # NaN too
    bits, most = np.float32(code).view(np.int32), np.float32(high + MAGIC).view(np.int32)
    bits = bits if bits < most else most
    return np.float32(np.int32(bits).view(np.float32) - MAGIC)


@inlined
def as_byte(v: np.float32) -> np.float32:
    """An integer as C stores it in a uint8_t: modulo 256."""
    return np.float32(np.int32(np.int32(v) & BYTE))


@kernel
def rounded_to_half(v: np.float32) -> np.float32:
    """The value that float16 keeps of v."""
    return f16_bits_to_f32(f32_to_f16_bits(v))


# ---- from a matrix into lanes --------------------------------------------------------------------------------------


@kernel
def aligned_floats(n: int) -> Array:
    """Room for n float32 that begins with a cache line, so that no 64-byte vector lies across two."""
    raw = np.empty(n + 16, np.float32)
    start = (-raw.ctypes.data % 64) // 4
    return raw[start : start + n]


@inlined
def row(a: Array, k: int) -> Array:
    """Row k of a tile."""
    return a[k * LANES : (k + 1) * LANES]


def raw_bytes(weights: Array) -> tuple[Array, bool]:
    """A contiguous matrix as kernels take it: flat bytes, and whether they are float32 (else bits of bfloat16).

    So one compiled kernel serves both.
    """
    return weights.reshape(-1).view(np.uint8), weights.dtype == np.float32


class Chunk(NamedTuple):
    """Consecutive blocks of a matrix on their way through the stages."""

    first: int  # the first block's number in the matrix
    x: Array  # float32 [n_tiles, block_size * LANES]: their weights as tiles, the last filled up with zeros
    blocks: Array  # uint8 [n_blocks, type_size]: where their bytes go


def chunks(weights: Array, block_size: int, out: Array, type_size: int) -> Iterator[Chunk]:
    """A matrix in parts of about `CHUNK` weights; `x` is overwritten from one to the next.

    weights and out are those of `BlockFormat.encode`.
    """
    raw, wide = raw_bytes(weights)
    blocks = out.reshape(-1, type_size)
    n_tiles = min(max(1, CHUNK // (block_size * LANES)), -(-len(blocks) // LANES))
    x = aligned_floats(n_tiles * block_size * LANES).reshape(n_tiles, block_size * LANES)
    for first in range(0, len(blocks), max(1, n_tiles * LANES)):
        part = blocks[first : first + n_tiles * LANES]
        tiles = x[: -(-len(part) // LANES)]
        load_tiles(raw, wide, first, len(blocks), block_size, tiles)
        yield Chunk(first, tiles, part)


@kernel
def load_tiles(raw: Array, wide: bool, first: int, n_blocks: int, block_size: int, x: Array) -> None:
    """Fill tiles x [n_tiles, block_size * LANES] with consecutive blocks."""
    for t in range(len(x)):
        load(raw, wide, first + t * LANES, n_blocks, block_size, x[t])


@kernel
def load(raw: Array, wide: bool, first: int, n_blocks: int, block_size: int, x: Array) -> None:
    """Fill a tile x [block_size * LANES] with the blocks first .. first + LANES, zeros after the last of `n_blocks`.

    block_size is a multiple of 32.
    """
    n = min(LANES, n_blocks - first)
    if wide:
        _load(raw.view(np.uint32), np.uint32(0), first * block_size, n, block_size, x)
    else:
        _load(raw.view(np.uint16), np.uint32(16), first * block_size, n, block_size, x)
    for i in range(n, LANES):
        for k in range(block_size):
            x[k * LANES + i] = ZERO


@kernel
def _load(bits: Array, shift: np.uint32, start: int, n: int, block_size: int, x: Array) -> None:
    for k0 in range(0, block_size, 32):  # 32 rows of the tile at a time: they stay in the L1 cache
        tile = x[k0 * LANES : (k0 + 32) * LANES]
        for i in range(n):
            o = start + i * block_size + k0
            block = bits[o : o + 32]
            for k in range(32):
                tile[k * LANES + i] = np.uint32(np.uint32(block[k]) << shift).view(np.float32)


@kernel
def row_square_sums(raw: Array, wide: bool, sums: Array) -> None:
    """The sum of x*x over each row, in index order: float32 [n_rows]."""
    if wide:
        _row_square_sums(raw.view(np.uint32), np.uint32(0), sums)
    else:
        _row_square_sums(raw.view(np.uint16), np.uint32(16), sums)


@kernel
def _row_square_sums(bits: Array, shift: np.uint32, sums: Array) -> None:
    n_rows = sums.size
    n_per_row = bits.size // max(1, n_rows)
    together = 4  # rows: a sum alone waits for its last addition, many rows collide in the L1 cache
    acc = np.empty(together, np.float32)
    for row in range(0, n_rows, together):
        acc[:] = ZERO
        if row + together <= n_rows:
            for k in range(n_per_row):
                for i in range(together):
                    v = np.uint32(np.uint32(bits[(row + i) * n_per_row + k]) << shift).view(np.float32)
                    acc[i] += v * v
        else:
            for i in range(n_rows - row):
                for k in range(n_per_row):
                    v = np.uint32(np.uint32(bits[(row + i) * n_per_row + k]) << shift).view(np.float32)
                    acc[i] += v * v
        for i in range(min(together, n_rows - row)):
            sums[row + i] = acc[i]


def importance_lanes(importance: Array, block_size: int) -> Array:
    """An importance [n_per_row] laid out for lanes: [block_size, n_blocks_per_row + LANES - 1], contiguous.

    Row k holds importance k of each block of a row, and goes round: the tile that begins with block `first` finds its
    lanes at columns `first % n_blocks_per_row` and on, even where it runs into the next rows of the matrix.
    """
    blocks = importance.reshape(-1, block_size)
    around = np.arange(len(blocks) + LANES - 1) % len(blocks)
    return np.ascontiguousarray(blocks[around].T)
