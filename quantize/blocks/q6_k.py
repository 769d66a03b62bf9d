"""Q6_K: 6.5625 bits per weight. Super-blocks of 256 weights, sixteen sub-blocks of 16; value = (d * sc) * (code - 32).

    128 bytes: ql | 64 bytes: qh | int8 sc[16] | float16 d

    In each half of 128 weights, with a, b, c, e = code[l], code[l + 32], code[l + 64], code[l + 96] and l < 32:

    ql[l]       a & 15 | (c & 15) << 4
    ql[l + 32]  b & 15 | (e & 15) << 4
    qh[l]       a >> 4 | (b >> 4) << 2 | (c >> 4) << 4 | (e >> 4) << 6

Source: ggml-quants.c, quantize_row_q6_K_ref, quantize_row_q6_K_impl, dequantize_row_q6_K.
"""

from __future__ import annotations

import numpy as np

from quantize.blocks.base import BlockFormat
from quantize.blocks.half import load_f16, store_f16
from quantize.blocks.jit import kernel
from quantize.blocks.lanes import LANES, ONE, ZERO, chunks, importance_lanes, nearest_int, rounded_to_half
from quantize.blocks.qx import EPS
from quantize.blocks.rounding import nearest_signed
from quantize.blocks.signed import fit, largest_scale, search_codes
from quantize.tensors import Array, QType

QK_K, N_SUB, SUB = 256, 16, 16
TYPE_SIZE = 210
QH, SC, D = 128, 192, 208  # where they begin
NMAX = 32


def encode(weights: Array, importance: Array | None, out: Array) -> None:
    """See `BlockFormat.encode`. Importances weigh the errors as they are, without the sqrt of other formats."""
    lanes = None if importance is None else importance_lanes(importance, QK_K)
    for chunk in chunks(weights, QK_K, out, TYPE_SIZE):
        grids = fit(chunk.x, N_SUB, NMAX, lanes, chunk.first)
        d = np.empty((len(chunk.x), LANES), np.float32)
        sc = np.empty((len(chunk.x), N_SUB, LANES), np.int8)
        _code_scales(grids.scales, grids.iscales, d, sc)
        codes = np.empty(chunk.x.shape, np.uint8)
        search_codes(chunk.x, np.float32(NMAX), grids.iscales, codes)
        nearest_signed(chunk.x, np.float32(NMAX), grids.scales, codes)
        pack(d, sc, codes, chunk.blocks)


@kernel
def _code_scales(scales: Array, iscales: Array, d: Array, sc: Array) -> None:
    """Code the scales so that the one of largest magnitude becomes -128; they and `d` are left as a reader sees them.

    A block without a scale loses its codes too (iscales 0): all its bytes are 0.
    """
    largest = np.empty(LANES, np.float32)
    for t in range(len(d)):
        largest_scale(scales[t], largest)
        for i in range(LANES):
            iscale = np.float32(-128) / largest[i]
            d[t, i] = ZERO if abs(largest[i]) < EPS else rounded_to_half(ONE / iscale)
        for j in range(N_SUB):
            for i in range(LANES):
                zero = abs(largest[i]) < EPS
                code = nearest_int(np.float32(-128) / largest[i] * scales[t, j, i])
                code = code if code < np.float32(127) else np.float32(127)
                code = ZERO if zero else code
                iscale = iscales[t, j, i]
                sc[t, j, i] = np.int8(np.int32(code))
                scales[t, j, i] = d[t, i] * code
                iscales[t, j, i] = ZERO if zero else iscale


@kernel
def pack(d: Array, sc: Array, codes: Array, blocks: Array) -> None:
    """Tiles of d [n_tiles, LANES], sc [n_tiles, N_SUB, LANES] and codes into blocks [n_blocks, TYPE_SIZE]."""
    for block_index in range(len(blocks)):
        t, i = block_index // LANES, block_index % LANES
        block = blocks[block_index]
        for half in range(2):
            for k in range(32):
                o = (128 * half + k) * LANES + i
                a, b = codes[t, o], codes[t, o + 32 * LANES]
                c, e = codes[t, o + 64 * LANES], codes[t, o + 96 * LANES]
                block[64 * half + k] = a & 15 | (c & 15) << 4
                block[64 * half + 32 + k] = b & 15 | (e & 15) << 4
                block[QH + 32 * half + k] = a >> 4 | (b >> 4) << 2 | (c >> 4) << 4 | (e >> 4) << 6
        for j in range(N_SUB):
            block[SC + j] = np.uint8(np.int32(sc[t, j, i]) & 255)
        store_f16(d[t, i], block, D)


@kernel
def _unpack(blocks: Array, values: Array) -> None:
    for b in range(len(blocks)):
        block, x = blocks[b], values[b]
        d = load_f16(block, D)
        for half in range(2):
            for quarter in range(4):
                for k in range(32):
                    low = block[64 * half + 32 * (quarter % 2) + k] >> (4 * (quarter // 2)) & 15
                    high = block[QH + 32 * half + k] >> (2 * quarter) & 3
                    o = 128 * half + 32 * quarter + k
                    scale = d * np.float32(np.int8(block[SC + o // SUB]))
                    x[o] = scale * np.float32(np.int32(low | high << 4) - np.int32(32))


def decode(blocks: Array, out: Array) -> None:
    """See `BlockFormat.decode`."""
    _unpack(blocks.reshape(-1, TYPE_SIZE), out.reshape(-1, QK_K))


FORMAT = BlockFormat(QType.Q6_K, QK_K, TYPE_SIZE, encode, decode)
