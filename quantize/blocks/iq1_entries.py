"""How IQ1_S and IQ1_M find the entries of their codebook: of a group of levels that is none, the best neighbour.

The errors of 16 neighbours are added side by side, each in ggml's order. Neighbours come by distance, and what differs
in more levels mostly has larger errors than the best that was found: where that is certain, the search ends.

Source: ggml-quants.c, iq1_find_best_neighbour2, iq2xs_init_impl.
"""

from __future__ import annotations

from functools import cache
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from quantize.blocks.codebook import codebook
from quantize.blocks.jit import inlined
from quantize.blocks.lanes import ONE, ZERO
from quantize.blocks.tiles import LANES, aligned_floats, row
from quantize.tensors import Array, QType

GROUP = 8  # weights of an entry
CHUNK = 16  # neighbours side by side
FLT_MAX = np.finfo(np.float32).max
LARGEST_ERROR = FLT_MAX.view(np.uint32)
INFINITY = np.float32(np.inf)
MARGIN = np.float32(2.0**-18)
"""Of a sum of eight terms, none below zero, and of what it changes by: their rounding errors are 36 * 2^-24 at most."""
NONE = np.uint16(0)
MIDDLE = tuple(
    np.uint16(1 << 2 * k) for k in range(GROUP)
)  # the bits of a pattern that say that a level is 1
HIGH = tuple(np.uint16(2 << 2 * k) for k in range(GROUP))  # that it is 2


class Entries(NamedTuple):
    """A codebook as kernels take it. A group's pattern holds level k, from 0 to 2, in bits 2 k and 2 k + 1.

    Neighbours lie in chunks of CHUNK, each list filled up with its last. The first chunks of all lists come first: they
    mostly are enough, and so are not scattered over the cache.
    """

    numbers: Array  # uint16 [256]: four levels of a pattern as a number to the base 3
    found: Array  # int16 [3^8], by the number of a pattern: the entry that it is; else -1 - list
    chunks: Array  # int32 [n_lists + 1]: the further chunks of a list
    near: Array  # uint16 [n_chunks, CHUNK]: the neighbours' patterns
    changes: Array  # uint8 [n_chunks + 1]: levels in which all from there on differ from the list's pattern, up to 3


@cache
def entries_of(qtype: QType) -> Entries:
    """The codebook of IQ1_S or IQ1_M."""
    book = codebook(qtype)
    quarters = np.arange(256)[:, None] >> 2 * np.arange(4) & 3
    numbers = (quarters.clip(max=2) * 3 ** np.arange(4)).sum(axis=1)
    patterns = np.flatnonzero((np.arange(1 << 16) & np.arange(1 << 16) >> 1 & 0x5555) == 0)
    found = np.empty(3**GROUP, np.int16)
    found[numbers[patterns & 255] + 81 * numbers[patterns >> 8]] = book.index[patterns]
    replaced = np.empty(len(book.starts) - 1, np.uint16)
    replaced[-1 - book.index[book.index < 0]] = np.flatnonzero(book.index < 0)
    starts, neighbours = book.padded(CHUNK)
    near = book.patterns[neighbours].reshape(-1, CHUNK)
    starts = starts // CHUNK
    changes = _changes(near, np.repeat(replaced, np.diff(starts))[:, None])
    for first, last in pairwise(starts):
        changes[first:last] = np.minimum.accumulate(changes[first:last][::-1])[::-1]
    is_first = np.zeros(len(near), bool)
    is_first[starts[:-1]] = True
    order = np.concatenate([np.flatnonzero(is_first), np.flatnonzero(~is_first)])
    chunks = len(replaced) + np.concatenate([[0], np.cumsum(np.diff(starts) - 1)])
    return Entries(
        numbers.astype(np.uint16),
        found,
        chunks.astype(np.int32),
        near[order],
        np.append(changes[order], np.uint8(0)),
    )


def _changes(near: Array, replaced: Array) -> Array:
    """The least number, up to 3, of levels in which a row of patterns differs from one: uint8 [n_rows]."""
    differing = near ^ replaced
    counts = np.zeros(near.shape, np.uint8)
    for k in range(GROUP):
        counts += (differing >> np.uint16(2 * k) & np.uint16(3)) != 0
    fewest: Array = np.minimum(counts, 3).min(axis=1)
    return fewest


@cache
def entry_levels(qtype: QType) -> Array:
    """The levels of each entry as numbers -1, 0 and 1: float32 [2048, GROUP]."""
    return codebook(qtype).levels.astype(np.float32) - 1


class Scratch(NamedTuple):
    """Memory for the search in a group, in all lanes of a tile."""

    terms: Array  # float32 [GROUP * 3 * LANES]: see `make_terms`
    limits: Array  # float32 [2 * LANES]: see `make_limits`
    errors: Array  # uint32 [CHUNK]: the bits of errors
    lanes: Array  # uint64 [LANES + 1]: lanes to be searched for
    lists: Array  # uint64 [LANES + 1]: the lists of their neighbours
    lows: Array  # uint32 [LANES + 1]: the least errors in their first chunks


def make_scratch() -> Scratch:
    """Memory, to be used again and again."""
    return Scratch(
        aligned_floats(GROUP * 3 * LANES),
        aligned_floats(2 * LANES),
        np.empty(CHUNK, np.uint32),
        np.empty(LANES + 1, np.uint64),
        np.empty(LANES + 1, np.uint64),
        np.empty(LANES + 1, np.uint32),
    )


@inlined
def choice(pattern: np.uint16, k: int, low: np.float32, middle: np.float32, high: np.float32) -> np.float32:
    """What belongs to the level of weight k of a pattern."""
    chosen = middle if np.uint16(pattern & MIDDLE[k]) != NONE else low
    return high if np.uint16(pattern & HIGH[k]) != NONE else chosen


@inlined
def make_terms(x: Array, w: Array, scale: Array, delta: Array, terms: Array) -> None:
    """The errors of the weights x of one group at each of the levels: float32 [GROUP * 3 * LANES]."""
    for k in range(GROUP):
        xs, ws, part = row(x, k), row(w, k), terms[3 * k * LANES : 3 * (k + 1) * LANES]
        for i in range(LANES):
            for c in range(3):
                diff = scale[i] * (delta[i] + np.float32(c - 1)) - xs[i]
                part[c * LANES + i] = ws[i] * diff * diff


@inlined
def make_limits(patterns: Array, terms: Array, limits: Array) -> None:
    """Bounds of the errors of all patterns that differ from the given ones in at least 2, or 3, levels: [2 * LANES].

    To change a level changes the sum of terms by at least `change`. So to change n levels or more makes it at least the
    sum itself, all changes that are below zero, and the n least of those above.
    """
    for i in range(LANES):
        pattern = patterns[i]
        total, falls = ZERO, ZERO
        first, second, third = INFINITY, INFINITY, INFINITY
        for k in range(GROUP):
            o = 3 * k * LANES + i
            low, middle, high = terms[o], terms[o + LANES], terms[o + 2 * LANES]
            own = choice(pattern, k, low, middle, high)
            change = choice(pattern, k, smaller(middle, high), smaller(low, high), smaller(low, middle)) - own
            total += own
            falls += smaller(change, ZERO)
            rise = larger(change, ZERO)
            first, rise = smaller(first, rise), larger(first, rise)
            second, rise = smaller(second, rise), larger(second, rise)
            third = smaller(third, rise)
        two = total + falls + first + second
        limits[i] = two - MARGIN * (total + abs(two))
        three = two + third
        limits[LANES + i] = three - MARGIN * (total + abs(three))


@inlined
def smaller(a: Any, b: Any) -> Any:
    """The smaller of two numbers."""
    return a if a < b else b


@inlined
def larger(a: Any, b: Any) -> Any:
    """The larger of two numbers."""
    return a if a > b else b


@inlined
def number_of(pattern: np.uint16, numbers: Array) -> np.int64:
    """A pattern as a number to the base 3."""
    return np.int64(np.int64(numbers[pattern & 255]) + 81 * np.int64(numbers[pattern >> 8]))


@inlined
def to_entries(patterns: Array, chosen: Array, off: Array, entries: Entries, scratch: Scratch) -> None:
    """Replace the patterns of a group that are no entries by their best neighbours, and set `off` there.

    Of neighbours with the same error the first is taken; so it is where no error is finite: there ggml aborts, after it
    has read beyond its arrays. Errors are not below zero, so that their bits are in their order, behind which are those
    of no numbers.

    The first chunks are searched in a row, and then, where they are not enough, the further ones: a branch that is
    foretold wrongly leaves nothing to do meanwhile.
    """
    numbers, found, chunks, near, changes = entries
    terms, limits, errors, lanes, lists, lows = scratch
    n = 0
    for i in range(LANES):
        entry = np.int64(found[number_of(patterns[i], numbers)])
        lanes[n], lists[n] = np.uint64(i), np.uint64(-1 - entry)
        n += 1 if entry < 0 else 0
    n_left = 0
    for t in range(n):
        i, c = lanes[t], lists[t]
        add_terms(c, i, near, terms, errors)
        low = least(errors)
        patterns[i] = near[c, place_of(low, errors)]
        off[i] = ONE
        further = np.uint64(chunks[c])
        is_last = chunks[c] == chunks[c + np.uint64(1)]
        is_enough = is_beyond(changes[further], low, limits[i], limits[np.uint64(LANES) + i])
        lanes[n_left], lists[n_left], lows[n_left] = i, c, low
        n_left += 0 if is_last | is_enough else 1
    for t in range(n_left):
        i, low = lanes[t], lows[t]
        first, last = np.uint64(chunks[lists[t]]), np.uint64(chunks[lists[t] + np.uint64(1)])
        for chunk in range(first, last):
            c = np.uint64(chunk)
            if is_beyond(changes[c], low, limits[i], limits[np.uint64(LANES) + i]):
                break
            add_terms(c, i, near, terms, errors)
            lowest = least(errors)
            if lowest < low:
                low = lowest
                patterns[i] = near[c, place_of(low, errors)]
    for i in range(LANES):
        chosen[i] = np.uint16(found[number_of(patterns[i], numbers)])


@inlined
def is_beyond(n_changes: np.uint8, low: np.uint32, limit: np.float32, next_limit: np.float32) -> np.bool_:
    """Whether a pattern with so many levels changed has an error above the lowest that was found, given its bits."""
    limit = next_limit if n_changes > 2 else limit
    return np.bool_((n_changes > 1) & (np.uint32(low).view(np.float32) < limit))


@inlined
def add_terms(c: np.uint64, i: np.uint64, near: Array, terms: Array, errors: Array) -> None:
    """The bits of the errors of the neighbours in chunk c, for lane i."""
    for p in range(CHUNK):
        pattern = near[c, np.uint64(p)]
        error = ZERO
        for k in range(GROUP):
            o = np.uint64(3 * k * LANES) + i
            error += choice(
                pattern, k, terms[o], terms[o + np.uint64(LANES)], terms[o + np.uint64(2 * LANES)]
            )
        errors[p] = np.float32(error).view(np.uint32)


@inlined
def least(errors: Array) -> np.uint32:
    """The least of CHUNK errors, if it is finite."""
    low = LARGEST_ERROR
    for p in range(0, CHUNK, 4):
        low = smaller(low, smaller(smaller(errors[p], errors[p + 1]), smaller(errors[p + 2], errors[p + 3])))
    return np.uint32(low)


@inlined
def place_of(low: np.uint32, errors: Array) -> np.uint64:
    """The first place of the least error, the first of all where none is finite."""
    place = np.uint64(0)
    for p in range(CHUNK - 1, -1, -1):
        place = np.uint64(p) if errors[p] == low else place
    return np.uint64(place)
