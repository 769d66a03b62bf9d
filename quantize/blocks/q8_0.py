"""Q8_0: 32 weights, one f16 scale, eight-bit codes; no search, and no use for an importance.

block_q8_0, 34 bytes (ggml-common.h):
    d   f16         amax / 127
    qs  int8 [32]   round(x / d), half away from zero
"""

from __future__ import annotations

import numpy as np

from quantize.blocks.base import BlockFormat
from quantize.blocks.half import F32, as_f32, load_f16, store_f16
from quantize.blocks.jit import kernel
from quantize.tensors import Array, QType

BLOCK, BYTES = 32, 34
TILE = 64  # blocks: 8 KB of float32

BEFORE_HALF = F32(0.49999997)  # the float32 below one half: adding it and truncating is C's roundf


@kernel
def _fit(x: Array, d: Array) -> None:
    """Weights [blocks * 32] to the scale of each block: the largest magnitude / 127 (`quantize_row_q8_0_ref`)."""
    for block in range(d.size):
        top = np.int32(0)
        for i in range(BLOCK):  # magnitudes are compared as integers: float maxima are not vectorised
            size = np.int32(np.float32(x[block * BLOCK + i]).view(np.int32) & np.int32(0x7FFFFFFF))
            top = size if size > top else top
        d[block] = np.int32(top).view(np.float32) / F32(127)


@kernel
def _pack(x: Array, d: Array, out: Array) -> None:
    """Round weights to codes and write blocks, uint8 [blocks * 34]; a denormal scale has no finite inverse, codes 0."""
    for block in range(d.size):
        at = block * BYTES
        store_f16(d[block], out, at)
        inverse = F32(1) / d[block] if d[block] != F32(0) else F32(0)
        for i in range(BLOCK):
            v = x[block * BLOCK + i] * inverse
            size = np.abs(v)
            code = np.int32(size + BEFORE_HALF) if size < F32(128) else np.int32(0)
            out[at + 2 + i] = np.uint8((-code if v < F32(0) else code) & 0xFF)


@kernel
def _encode_rows(weights: Array, out: Array) -> None:
    x = np.empty(TILE * BLOCK, np.float32)
    d = np.empty(TILE, np.float32)
    n_block = weights.size // BLOCK
    for start in range(0, n_block, TILE):
        n = min(TILE, n_block - start)
        part = weights[start * BLOCK : (start + n) * BLOCK]
        for i in range(part.size):
            x[i] = as_f32(part[i])
        _fit(x, d[:n])
        _pack(x, d[:n], out[start * BYTES : (start + n) * BYTES])


def _encode(weights: Array, importance: Array | None, out: Array) -> None:
    _encode_rows(weights.reshape(-1), out.reshape(-1))


@kernel
def _unpack(blocks: Array, out: Array) -> None:
    """Blocks, uint8 [blocks * 34], to the weights they stand for (`dequantize_row_q8_0`)."""
    for block in range(blocks.size // BYTES):
        at = block * BYTES
        d = load_f16(blocks, at)
        for i in range(BLOCK):
            out[block * BLOCK + i] = F32(np.int8(blocks[at + 2 + i])) * d


def _decode(blocks: Array, out: Array) -> None:
    _unpack(blocks.reshape(-1), out.reshape(-1))


FORMAT = BlockFormat(QType.Q8_0, BLOCK, BYTES, _encode, _decode, uses_importance=False)
