"""Q6_K: 6.5625 bits per weight. Super-blocks of 256 weights, sixteen sub-blocks of 16; value = (d * sc) * (code - 32).

    128 bytes: ql | 64 bytes: qh | int8 sc[16] | float16 d

    In each half of 128 weights, with a, b, c, e = code[l], code[l + 32], code[l + 64], code[l + 96] and l < 32:

    ql[l]       a & 15 | (c & 15) << 4
    ql[l + 32]  b & 15 | (e & 15) << 4
    qh[l]       a >> 4 | (b >> 4) << 2 | (c >> 4) << 4 | (e >> 4) << 6

Source: ggml-quants.c, quantize_row_q6_K_ref, quantize_row_q6_K_impl, dequantize_row_q6_K.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from quantize.blocks.base import BlockFormat, Grid
from quantize.blocks.error_weights import TileGuide
from quantize.blocks.half import load_f16
from quantize.blocks.jit import kernel
from quantize.blocks.lanes import ONE, ZERO, nearest_int
from quantize.blocks.parts import PartFormat, store_f16
from quantize.blocks.qx import EPS
from quantize.blocks.signed import fit_signed, largest_scale, round_anew, search_codes
from quantize.blocks.tiles import LANES, copy_rows, row, store_halves
from quantize.tensors import Array, QType

QK_K, N_SUB, SUB = 256, 16, 16
TYPE_SIZE = 210
QH, SC, D = 128, 192, 208  # where they begin
NMAX = 32
LEVELS = np.arange(-NMAX, NMAX, dtype=np.float32)


def fit(x: Array, guide: TileGuide | None) -> Grid:
    """See `BlockFormat`. Importances weigh the errors as they are, without the sqrt of other formats."""
    scales, iscales, _ = fit_signed(x, N_SUB, NMAX, guide)
    head, d = np.empty((len(x), TYPE_SIZE - SC, LANES), np.uint8), np.empty((len(x), LANES), np.float32)
    _fit_factor(scales, d)
    store_halves(d, head, D - SC)
    _code_scales(d, scales, iscales, head)
    searched = partial(search_codes, nmax=NMAX, iscales=iscales)
    return Grid(head, LEVELS, scales, None, partial(round_anew, nmax=NMAX, scales=scales, searched=searched))


@kernel
def _fit_factor(scales: Array, d: Array) -> None:
    """The factor of each block with which its scale of largest magnitude becomes -128."""
    for t in range(len(d)):
        largest = d[t]
        largest_scale(scales[t], largest)
        for i in range(LANES):
            iscale = np.float32(-128) / largest[i]
            largest[i] = ZERO if abs(largest[i]) < EPS else ONE / iscale


@kernel
def _code_scales(d: Array, scales: Array, iscales: Array, head: Array) -> None:
    """Code the scales, and leave those that a reader will see, d being rounded.

    A block without a scale loses its codes too (iscales 0): all its bytes are 0.
    """
    largest = np.empty(LANES, np.float32)
    for t in range(len(d)):
        largest_scale(scales[t], largest)
        for j in range(N_SUB):
            for i in range(LANES):
                zero = abs(largest[i]) < EPS
                code = nearest_int(np.float32(-128) / largest[i] * scales[t, j, i])
                code = code if code < np.float32(127) else np.float32(127)
                code = ZERO if zero else code
                iscale = iscales[t, j, i]
                head[t, j, i] = np.uint8(np.int32(code) & 255)
                scales[t, j, i] = d[t, i] * code
                iscales[t, j, i] = ZERO if zero else iscale


@kernel
def pack(head: Array, codes: Array, blocks: Array) -> None:
    """See `BlockFormat.pack_kernel`."""
    for t in range(len(head)):
        tile, block = codes[t], blocks[t]
        copy_rows(head[t], block[SC:])
        for half in range(2):
            for k in range(32):
                o = 128 * half + k
                a, b, c, e = row(tile, o), row(tile, o + 32), row(tile, o + 64), row(tile, o + 96)
                first, second, high = (
                    block[64 * half + k],
                    block[64 * half + 32 + k],
                    block[QH + 32 * half + k],
                )
                for i in range(LANES):
                    first[i] = a[i] & 15 | c[i] << 4
                    second[i] = b[i] & 15 | e[i] << 4
                    high[i] = a[i] >> 4 | b[i] >> 4 << 2 | c[i] >> 4 << 4 | e[i] >> 4 << 6


@kernel
def unpack(blocks: Array, values: Array) -> None:
    """See `BlockFormat.decode`."""
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


FORMAT = BlockFormat(QType.Q6_K, QK_K, TYPE_SIZE, fit, pack, unpack)


@kernel
def split(blocks: Array, codes: Array, scales: Array, mins: Array, factors: Array) -> None:
    """See `PartFormat`."""
    for b in range(len(blocks)):
        block = blocks[b]
        factors[b, 0] = load_f16(block, D)
        for j in range(N_SUB):
            scales[b, j] = np.int8(block[SC + j])
        for k in range(QK_K):
            half, quarter = k // 128, k // 32 % 4
            low = block[64 * half + 32 * (quarter % 2) + k % 32] >> (4 * (quarter // 2)) & 15
            codes[b, k] = low | (block[QH + 32 * half + k % 32] >> (2 * quarter) & 3) << 4


@kernel
def join(codes: Array, scales: Array, mins: Array, factors: Array, blocks: Array) -> None:
    """See `PartFormat`."""
    for b in range(len(blocks)):
        block = blocks[b]
        store_f16(block, D, factors[b, 0])
        for j in range(N_SUB):
            block[SC + j] = np.uint8(int(scales[b, j]) & 255)
        for k in range(QK_K):
            half, quarter = k // 128, k // 32 % 4
            block[64 * half + 32 * (quarter % 2) + k % 32] |= (codes[b, k] & 15) << (4 * (quarter // 2))
            block[QH + 32 * half + k % 32] |= (codes[b, k] >> 4) << (2 * quarter)


PARTS = PartFormat(QType.Q6_K, QK_K, TYPE_SIZE, N_SUB, LEVELS, -128, 127, 0, split, join)
