"""Groups of four weights and the codebooks of IQ3_XXS and IQ3_S: which entry ggml takes for a group at a scale.

ggml rounds the weights x of a group to levels 0..7, value = scale * (2 * level + 1). If the codebook lacks the pattern
of levels (see `codebook`), it takes the entry with the least error from the pattern's list of neighbours, the first of
equals. The error is the sum of a * (scale * q - x) ** 2, q the entry's values.

Most lists can be shortened without changing what is found. If for all four weights neighbour A either has the level of
neighbour B, or lies fewer levels away from the pattern than B, then no error of A is greater than B's: scale * q is as
near to x, or nearer, and float32's operations are monotonous. So B is not needed if A precedes it. That presumes that x
is nearer to its level than to any other by more than rounding errors; where it is not, a group takes the whole list.

Source: ggml-quants.c, iq3_find_best_neighbour.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np

from quantize.blocks.codebook import Codebook, codebook
from quantize.blocks.jit import inlined
from quantize.blocks.lanes import HALF, ZERO, nearest_code
from quantize.blocks.tiles import LANES
from quantize.tensors import Array, QType

GROUP = 4
N_PATTERNS = 8**GROUP
SEVEN = np.float32(7)
SURE = np.float32(0.4999)
"""Levels by which x is less away from the nearest level than from any other, rounding errors included."""
UNSURE = np.float32(N_PATTERNS)
LARGEST = np.float32(np.finfo(np.float32).max)
LARGEST_BITS, NO_ERROR = 0x7F7FFFFF, 0x7FFFFFFF  # of float32: those of LARGEST, and all but the sign
STEP = 3  # neighbours per turn of the loop
LENGTH_BITS, LENGTH, IS_ENTRY = 8, 127, 1 << 7  # of `Cells.lists`
SIZE = 8  # floats of an entry

WIDTH = 16  # scales for which a neighbour's errors are computed together
N_SCALES = 32  # room for
ROW = N_SCALES + WIDTH
SCALE, ERROR, FOUND = (r * ROW for r in range(3))  # rows of the state of a search

Four = tuple[np.float32, np.float32, np.float32, np.float32]
Entry = tuple[np.float32, np.float32, np.float32, np.float32, np.float32]


class Cells(NamedTuple):
    """A codebook as kernels take it.

    A *cell* is a pattern, plus 4096 where a weight is near the middle of two levels.
    """

    entries: Array  # float32 [n_entries * 8]: four values 1, 3 .. 15, the bits of the packed entry, and three zeros
    lists: Array  # int32 [8192], by cell: where its list is in `neighbours` << 8 | whether it is an entry << 7 | length
    neighbours: Array  # uint16: indices of entries; lists are filled up to a multiple of STEP with their last
    packed: Array  # int32: the packed entries of `neighbours`, and WIDTH zeros


@cache
def cells(qtype: QType) -> Cells:
    """The cells of IQ3_XXS or IQ3_S. The list of an entry's pattern is the entry."""
    book = codebook(qtype)
    values = 2 * book.levels.astype(np.int32) + 1
    packed = (values << np.arange(0, 16, 4)).sum(axis=1) | np.arange(len(values)) << 16
    entries = np.zeros((len(values), SIZE), np.float32)
    entries[:, :GROUP] = values
    entries[:, GROUP] = packed.astype(np.int32).view(np.float32)
    lists, neighbours = np.empty(2 * N_PATTERNS, np.int32), list[int]()
    for cell in range(2 * N_PATTERNS):  # the short lists together: they stay in the caches
        part, is_entry = _list(cell, book)
        length = -(-len(part) // STEP) * STEP
        lists[cell] = len(neighbours) << LENGTH_BITS | length | is_entry * IS_ENTRY
        neighbours += [*part, *[part[-1]] * (length - len(part))]
    found = np.concatenate([packed[neighbours], np.zeros(WIDTH)]).astype(np.int32)
    return Cells(entries.reshape(-1), lists, np.array(neighbours, np.uint16), found)


def _list(cell: int, book: Codebook) -> tuple[Array, bool]:
    """The neighbours of a cell, and whether it is an entry's."""
    found = book.index[cell % N_PATTERNS]
    if found >= 0:
        return np.array([found]), True
    whole = book.neighbours[book.starts[-1 - found] : book.starts[-found]]
    return _needed(cell, whole, book) if cell < N_PATTERNS else whole, False


def _needed(pattern: int, whole: Array, book: Codebook) -> Array:
    """The neighbours of a pattern that no neighbour before them makes superfluous."""
    levels = pattern >> 3 * np.arange(GROUP) & 7
    steps = book.levels[whole].astype(np.int32) - levels
    away = abs(steps)
    is_better = ((steps[:, None] == steps) | (away[:, None] < away)).all(axis=2)
    needed: Array = whole[~np.triu(is_better, 1).any(axis=0)]
    return needed


@inlined
def four(values: Array, k: int, i: int) -> Four:
    """The values of group k in lane i of a sub-block's tile."""
    o, step = np.uint64(GROUP * k * LANES + i), np.uint64(LANES)
    return values[o], values[o + step], values[o + step + step], values[o + step + step + step]


@inlined
def cell_of(inverse: np.float32, x: Four) -> np.int32:
    """The cell of a group with the scale 0.5 / inverse."""
    v0, v1, v2, v3 = (
        inverse * x[0] - HALF,
        inverse * x[1] - HALF,
        inverse * x[2] - HALF,
        inverse * x[3] - HALF,
    )
    l0, l1 = nearest_code(v0, ZERO, SEVEN), nearest_code(v1, ZERO, SEVEN)
    l2, l3 = nearest_code(v2, ZERO, SEVEN), nearest_code(v3, ZERO, SEVEN)
    r0, r1, r2, r3 = _rest(v0, l0), _rest(v1, l1), _rest(v2, l2), _rest(v3, l3)
    r0 = r0 if r0 > r1 else r1
    r2 = r2 if r2 > r3 else r3
    r0 = r0 if r0 > r2 else r2
    pattern = l0 + np.float32(8) * l1 + np.float32(64) * l2 + np.float32(512) * l3
    return np.int32(pattern + (ZERO if r0 < SURE else UNSURE))


@inlined
def _rest(v: np.float32, level: np.float32) -> np.float32:
    v = v if v > ZERO else ZERO
    v = v if v < SEVEN else SEVEN
    return abs(np.float32(v - level))


@inlined
def _entry(entries: Array, neighbours: Array, j: int) -> Entry:
    """Neighbour j. Unsigned indices need no test whether they are negative."""
    o = np.uint64(neighbours[np.uint64(j)]) * np.uint64(SIZE)
    e0, e1, e2 = entries[o], entries[o + np.uint64(1)], entries[o + np.uint64(2)]
    return e0, e1, e2, entries[o + np.uint64(3)], entries[o + np.uint64(4)]


@inlined
def _error(scale: np.float32, entry: Entry, x: Four, a: Four) -> np.float32:
    d0, d1 = scale * entry[0] - x[0], scale * entry[1] - x[1]
    d2, d3 = scale * entry[2] - x[2], scale * entry[3] - x[3]
    return a[0] * d0 * d0 + a[1] * d1 * d1 + a[2] * d2 * d2 + a[3] * d3 * d3


@inlined
def find(place: int, o: int, x: Four, a: Four, entries: Array, neighbours: Array, state: Array) -> None:
    """Find the entries of a group for WIDTH scales with which it is in the same cell.

    `place` is the cell's of `Cells.lists`. Takes `state` [SCALE + o : SCALE + o + WIDTH]; leaves FOUND, the bits of the
    packed entries. If all errors overflow, ggml aborts; here it is the first neighbour.
    """
    n, first = place & LENGTH, place >> LENGTH_BITS
    for j in range(first, first + n, STEP):
        e0, e1 = _entry(entries, neighbours, j), _entry(entries, neighbours, j + 1)
        e2 = _entry(entries, neighbours, j + 2)
        is_first = j == first
        for c in range(WIDTH):
            at = np.uint64(o + c)
            scale = state[at + np.uint64(SCALE)]
            least = LARGEST if is_first else state[at + np.uint64(ERROR)]
            found = e0[GROUP] if is_first else state[at + np.uint64(FOUND)]
            error0, error1 = _error(scale, e0, x, a), _error(scale, e1, x, a)
            found = e0[GROUP] if error0 < least else found
            least = error0 if error0 < least else least
            found = e1[GROUP] if error1 < least else found
            least = error1 if error1 < least else least
            error2 = _error(scale, e2, x, a)
            found = e2[GROUP] if error2 < least else found
            least = error2 if error2 < least else least
            state[at + np.uint64(ERROR)] = least
            state[at + np.uint64(FOUND)] = found


@inlined
def find_one(place: int, scale: np.float32, x: Four, a: Four, packed: Array) -> np.int32:
    """Find the packed entry of a group with one scale.

    Neighbours lie side by side. Errors are compared as the bits of float32 without sign, so that LLVM makes vectors of
    the search for the least: no error is negative, and an overflow is greater than LARGEST then, also as no number.
    """
    n, first = place & LENGTH, place >> LENGTH_BITS
    best, least = int(first), np.int32(LARGEST_BITS)
    for j in range(first, first + n, WIDTH):
        end, low, at = np.int32(first + n - j), np.int32(NO_ERROR), np.int32(WIDTH)
        for i in range(WIDTH):
            bits = _bits(i, end, scale, packed[np.uint64(j + i)], x, a)
            low = bits if bits < low else low
        for i in range(WIDTH):
            bits = _bits(i, end, scale, packed[np.uint64(j + i)], x, a)
            place_of = np.int32(i) if bits == low else np.int32(WIDTH)
            at = place_of if place_of < at else at
        best = int(j + at) if low < least else best
        least = low if low < least else least
    return np.int32(packed[np.uint64(best)])


@inlined
def _bits(i: int, end: np.int32, scale: np.float32, packed: np.int32, x: Four, a: Four) -> np.int32:
    q0, q1, q2, q3 = value(packed, 0), value(packed, 1), value(packed, 2), value(packed, 3)
    error = np.float32(_error(scale, (q0, q1, q2, q3, ZERO), x, a))
    bits = np.int32(error.view(np.int32) & np.int32(NO_ERROR))
    return bits if np.int32(i) < end else np.int32(NO_ERROR)


@inlined
def value(packed: np.int32, m: int) -> np.float32:
    """Value m of a packed entry."""
    return np.float32(np.int32(packed >> np.int32(4 * m)) & np.int32(15))
