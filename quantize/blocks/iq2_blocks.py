"""What the blocks of IQ2_XXS, IQ2_XS and IQ2_S share: the way to codes and back, around the search (`iq2`).

Value = d * (0.5 + sc) / 4 * entry, with a sign; the weights of an entry are 8, 25 or 43.

Source: ggml-quants.c, the ends of quantize_row_iq2_xxs_impl, ...xs_impl and ...s_impl; dequantize_row_iq2_xxs.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np

from quantize.blocks.codebook import codebook
from quantize.blocks.error_weights import NO_GUIDE, TileGuide, mean_squares
from quantize.blocks.iq2 import N_GROUPS, QK_K, Search, fit
from quantize.blocks.jit import inlined, inlined_leaf, kernel
from quantize.blocks.lanes import HALF, MAGIC, MAGIC_FIELD, ONE, ZERO
from quantize.blocks.neighbour_lines import GROUP
from quantize.blocks.neighbour_lists import lists
from quantize.blocks.tiles import LANES
from quantize.tensors import Array, QType

VALUES = np.array([8, 25, 43], np.float32)  # of levels, in a decoder


class Parts(NamedTuple):
    """What the blocks of some tiles consist of."""

    largest: Array  # float32 [n_tiles, LANES]: the largest scale of a block; 0 where the block is zero
    d: Array  # float32 [n_tiles, LANES]: to be stored
    sc: Array  # uint8 [n_tiles, n_sub, LANES]: 0..15
    codes: Array  # uint16 [n_tiles, 32, LANES]: indices of entries
    signs: Array  # uint8 [n_tiles, 32, LANES]: bit k is set where weight k is negative


def parts_of(
    qtype: QType, search: Search, x: Array, guide: TileGuide | None, times: float = 1, shrink: float = 1
) -> Parts:
    """Fit the tiles x [n_tiles, 256 * LANES] of a type.

    The weights of the errors are importance * sqrt(sigma2 + x * x), or 0.25 * sigma2 + x * x where there are none, with
    `times` the mean of x * x over the block. What is stored as d is multiplied by `shrink`.
    """
    n_tiles, book = len(x), codebook(qtype)
    sigma2 = mean_squares(x, times, QK_K)
    guide = guide or NO_GUIDE
    scales = np.empty((n_tiles, QK_K // search.n, LANES), np.float32)
    codes = np.empty((n_tiles, N_GROUPS, LANES), np.uint16)
    signs = np.empty((n_tiles, N_GROUPS, LANES), np.uint8)
    fit(x, guide.importance, guide.n_rows, sigma2, search, lists(qtype), scales, codes, signs)
    _look_up(codes.reshape(-1), book.index)
    largest, d = np.empty((n_tiles, LANES), np.float32), np.empty((n_tiles, LANES), np.float32)
    sc = np.empty(scales.shape, np.uint8)
    _code_scales(scales, np.float32(shrink), largest, d, sc)
    return Parts(largest, d, sc, codes, signs)


@kernel
def _look_up(patterns: Array, index: Array) -> None:
    for k in range(patterns.size):
        patterns[k] = index[patterns[k]]


@kernel
def _code_scales(scales: Array, shrink: np.float32, largest: Array, d: Array, sc: Array) -> None:
    for t in range(len(scales)):
        for i in range(LANES):
            largest[t, i] = ZERO
        for j in range(scales.shape[1]):
            for i in range(LANES):
                high, scale = largest[t, i], scales[t, j, i]
                largest[t, i] = high if high > scale else scale
        for j in range(scales.shape[1]):
            for i in range(LANES):
                inverse = ONE / (largest[t, i] / np.float32(31))
                sc[t, j, i] = np.uint8(_scale_code(HALF * (inverse * scales[t, j, i] - ONE)))
        for i in range(LANES):
            d[t, i] = largest[t, i] / np.float32(31) * shrink


@inlined
def _scale_code(v: np.float32) -> np.int32:
    """ggml's `nearest_int`, clipped to 0..15."""
    code = np.int32(np.int32(np.float32(v + MAGIC).view(np.int32) & MAGIC_FIELD) - np.int32(0x400000))
    code = code if code > np.int32(0) else np.int32(0)
    return code if code < np.int32(15) else np.int32(15)


@cache
def entries(qtype: QType) -> Array:
    """The codebook as a decoder sees it: float32 [n_entries, 8]."""
    return VALUES[codebook(qtype).levels]


@cache
def even_signs() -> Array:
    """Eight signs of seven, uint8 [128]: bit 7 makes the number of bits even."""
    seven = np.arange(128, dtype=np.uint8)
    odd = np.bitwise_xor.reduce(np.unpackbits(seven[:, None], axis=1), axis=1)
    signs: Array = seven | odd << np.uint8(7)
    return signs


@inlined
def group_scale(d: np.float32, sc: int) -> np.float32:
    """What the entries of a sub-block are multiplied by."""
    return np.float32(d * (HALF + np.float32(sc)) * np.float32(0.25))


@inlined_leaf
def put_group(scale: np.float32, entry: Array, signs: np.uint8, values: Array) -> None:
    """Decode a group of 8."""
    bits, s = values.view(np.uint32), np.uint32(signs)
    for k in range(GROUP):
        values[k] = scale * entry[k]
    for k in range(GROUP):
        bits[k] ^= np.uint32(np.uint32(s >> np.uint32(k)) << np.uint32(31))
