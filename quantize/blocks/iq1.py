"""What IQ1_S and IQ1_M share: weights of three levels, in groups of eight, of which a codebook knows 2048.

Source: ggml-quants.c, quantize_row_iq1_s_impl, quantize_row_iq1_m_impl, iq1_find_best_neighbour2, iq2xs_init_impl.
"""

from __future__ import annotations

from functools import cache
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from quantize.blocks.codebook import codebook
from quantize.blocks.jit import inlined, kernel
from quantize.blocks.lanes import ONE, ZERO
from quantize.blocks.tiles import LANES, aligned_floats, row
from quantize.tensors import Array, QType

QK_K = 256
GROUP = 8  # weights of an entry of the codebook
ALL_HIGH = np.int32(0xAAAA)  # the pattern of levels 2
DELTA = np.float32(0.125)  # by which the levels -1, 0, 1 are shifted, up or down
CHUNK = 16  # neighbours that are looked at together

FLT_MAX = np.finfo(np.float32).max
LARGEST_ERROR = FLT_MAX.view(np.uint32)
INFINITY = np.float32(np.inf)
MARGIN = np.float32(2.0**-18)
MAGNITUDE = np.int32(0x7FFFFFFF)
ONE_OF_EACH = np.ones(LANES, np.float32)
LARGEST_KEY = np.int64(0x7FFFFFFFFFFFFFFF)
NONE = np.uint16(0)
MIDDLE, HIGH = (
    tuple(np.uint16(bit << 2 * k) for k in range(GROUP)) for bit in (1, 2)
)  # of the levels in a pattern
N_STATE = 8
LARGEST, SCALE, BEST, SPLIT, OFF, FLIP, SUM_QX, SUM_Q2 = (k * LANES for k in range(N_STATE))


class Entries(NamedTuple):
    """A codebook as kernels take it. A group's pattern holds level k, from 0 to 2, in bits 2 k and 2 k + 1.

    Neighbours lie in chunks of CHUNK, each list filled up with its last. The first chunks of all lists come first: they
    mostly are enough, and so are not scattered over the cache.
    """

    numbers: Array  # uint16 [256]: four levels of a pattern as a number to the base 3
    index: Array  # int16 [3^8], by the number of a pattern: the entry that it is; else -1 - list
    chunks: Array  # int32 [n_lists + 1]: the further chunks of a list
    near: Array  # uint16 [n_chunks, CHUNK]: the neighbours' patterns
    changes: Array  # uint8 [n_chunks]: in how many levels all from there on differ from what they replace; 3 for more


@cache
def entries_of(qtype: QType) -> Entries:
    """The codebook of IQ1_S or IQ1_M."""
    book = codebook(qtype)
    quarters = np.arange(256)[:, None] >> 2 * np.arange(4) & 3
    numbers = (quarters.clip(max=2) * 3 ** np.arange(4)).sum(axis=1)
    patterns = np.flatnonzero((np.arange(1 << 16) & np.arange(1 << 16) >> 1 & 0x5555) == 0)
    index = np.empty(3**GROUP, np.int16)
    index[numbers[patterns & 255] + 81 * numbers[patterns >> 8]] = book.index[patterns]
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
    return Entries(numbers.astype(np.uint16), index, chunks.astype(np.int32), near[order], changes[order])


def _changes(near: Array, replaced: Array) -> Array:
    """The least number, up to 3, of levels in which a row of patterns differs from one: uint8 [n_rows]."""
    differing = near ^ replaced
    differing = (differing | differing >> np.uint16(1)) & np.uint16(0x5555)
    counts = sum((differing >> np.uint16(2 * k) & np.uint16(1)).astype(np.uint8) for k in range(GROUP))
    least: Array = np.minimum(counts, 3).min(axis=1)
    return least


@cache
def entry_levels(qtype: QType) -> Array:
    """The levels of each entry as numbers -1, 0 and 1: float32 [2048, GROUP]."""
    return codebook(qtype).levels.astype(np.float32) - 1


class Room(NamedTuple):
    """Memory for the search in a sub-block of n weights, in all lanes of a tile."""

    w: Array  # float32 [256 * LANES]: the weights of the errors, of the whole block
    keys: Array  # int64 [n * LANES]: see `key_of`; sorted
    state: Array  # float32 [N_STATE * LANES]
    sums: Array  # float32: sums over the sorted weights, which the formats lay out
    deltas: Array  # float32 [n // GROUP * LANES]: the shift of each group's levels
    terms: Array  # float32 [GROUP * 3 * LANES]: see `make_terms`
    limits: Array  # float32 [2 * LANES]: see `make_limits`
    errors: Array  # uint32 [CHUNK]: the bits of errors
    lanes: Array  # uint64 [LANES + 1]: lanes to be searched for
    lists: Array  # uint64 [LANES + 1]: the lists of their neighbours
    lows: Array  # uint32 [LANES + 1]: the least errors in their first chunks
    entries: Array  # uint16 [256 // GROUP * LANES]: the entries chosen, of the whole block
    patterns: Array  # uint16 [256 // GROUP * LANES]: their patterns


def make_room(n: int, n_sums: int) -> Room:
    """Memory for sub-blocks of n weights, `n_sums` rows of them sums."""
    n_groups = QK_K // GROUP
    return Room(
        aligned_floats(QK_K * LANES),
        np.empty(n * LANES, np.int64),
        aligned_floats(N_STATE * LANES),
        aligned_floats(n_sums * LANES),
        aligned_floats(n // GROUP * LANES),
        aligned_floats(GROUP * 3 * LANES),
        aligned_floats(2 * LANES),
        np.empty(CHUNK, np.uint32),
        np.empty(LANES + 1, np.uint64),
        np.empty(LANES + 1, np.uint64),
        np.empty(LANES + 1, np.uint32),
        np.empty(n_groups * LANES, np.uint16),
        np.empty(n_groups * LANES, np.uint16),
    )


# ---- sorting -------------------------------------------------------------------------------------------------------


def network(n: int) -> Array:
    """Batcher's odd-even merge sort of n keys, a power of two: int64 [n_pairs, 2], each to be put in order in turn."""
    pairs = []
    p = 1
    while p < n:
        k = p
        while k >= 1:
            for j in range(k % p, n - k, 2 * k):
                for i in range(min(k, n - j - k)):
                    if (i + j) // (2 * p) == (i + j + k) // (2 * p):
                        pairs.append((i + j, i + j + k))
            k //= 2
        p *= 2
    return np.array(pairs, np.int64)


@inlined
def key_of(x: np.float32, k: int) -> np.int64:
    """A key that orders weights by value, and equal ones by position k, as a stable sort does."""
    bits = np.float32(x + ZERO).view(np.int32)  # -0 becomes 0
    ordered = np.int32(bits ^ np.int32(np.int32(bits >> np.int32(31)) & MAGNITUDE))
    return np.int64(np.int64(np.int64(ordered) << np.int64(32)) | np.int64(k))


@inlined
def weight_of(key: np.int64) -> np.float32:
    """The weight that a key orders, 0 for -0."""
    ordered = np.int32(key >> np.int64(32))
    return np.int32(ordered ^ np.int32(np.int32(ordered >> np.int32(31)) & MAGNITUDE)).view(np.float32)


@inlined
def position_of(key: np.int64) -> np.int64:
    """The position of the weight that a key orders."""
    return np.int64(key & np.int64(31))


@inlined
def sort_keys(keys: Array, pairs: Array) -> None:
    """Sort each lane of keys."""
    for p in range(len(pairs)):
        low, high = row(keys, pairs[p, 0]), row(keys, pairs[p, 1])
        for i in range(LANES):
            a, b = low[i], high[i]
            low[i] = a if a < b else b
            high[i] = b if a < b else a


@inlined
def to_patterns(n: int, x: Array, keys: Array, cuts: Array, flips: Array, patterns: Array) -> None:
    """The patterns uint16 [n // GROUP * LANES] of the levels that two cuts between the sorted weights make.

    x is float32 [n * LANES], keys int64 [n * LANES], sorted; cuts int32 [2 * LANES]: the positions where levels 1 and 2
    begin; flips are not 0 where levels 0 and 2 change places.
    """
    first, second = np.empty(LANES, np.int64), np.empty(LANES, np.int64)
    for i in range(LANES):
        a, b = cuts[i], cuts[LANES + i]
        first[i] = keys[a * LANES + i] if a < n else LARGEST_KEY
        second[i] = keys[b * LANES + i] if b < n else LARGEST_KEY
    for g in range(n // GROUP):
        part, into = x[g * GROUP * LANES : (g + 1) * GROUP * LANES], row(patterns, g)
        for i in range(LANES):
            pattern = np.int32(0)
            for k in range(GROUP):
                key, one = key_of(part[k * LANES + i], g * GROUP + k), np.int32(1 << (2 * k))
                pattern = np.int32(pattern + (one if key >= first[i] else np.int32(0)))
                pattern = np.int32(pattern + (one if key >= second[i] else np.int32(0)))
            into[i] = np.uint16(ALL_HIGH - pattern if flips[i] != ZERO else pattern)


# ---- the codebook --------------------------------------------------------------------------------------------------


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
    """Errors that no pattern has which differs from the given ones in at least 2, or 3, levels: [2 * LANES].

    A change of one level changes the sum of terms by at least `change`, so that changes of n levels make it at least
    the sum itself, all changes below zero, and the n least above. MARGIN is more than the rounding errors of this and
    of the sums that are compared with it.
    """
    for i in range(LANES):
        pattern = patterns[i]
        total, falls = ZERO, ZERO
        first, second, third = INFINITY, INFINITY, INFINITY
        for k in range(GROUP):
            low, middle, high = (
                terms[3 * k * LANES + i],
                terms[(3 * k + 1) * LANES + i],
                terms[(3 * k + 2) * LANES + i],
            )
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
def smaller(a: np.float32, b: np.float32) -> np.float32:
    """The smaller of two numbers."""
    return a if a < b else b


@inlined
def larger(a: np.float32, b: np.float32) -> np.float32:
    """The larger of two numbers."""
    return a if a > b else b


@inlined
def number_of(pattern: np.uint16, numbers: Array) -> int:
    """A pattern as a number to the base 3."""
    return np.int64(numbers[pattern & 255]) + 81 * np.int64(numbers[pattern >> 8])


@inlined
def to_entries(patterns: Array, chosen: Array, off: Array, entries: Entries, room: Room) -> None:
    """Replace the patterns of a group that are no entries by their best neighbours, and set `off` there.

    Of neighbours with the same error the first is taken; so it is where no error is finite: there ggml aborts, after it
    has read beyond its arrays. Errors are not below zero, so that their bits are in their order, behind which are those
    of no numbers.

    The first chunks are searched in a row, and then, where they are not enough, the further ones: a branch that is
    foretold wrongly leaves nothing to do meanwhile.
    """
    numbers, index, chunks, near, changes = entries
    terms, limits, errors = room.terms, room.limits, room.errors
    lanes, lists, lows = room.lanes, room.lists, room.lows
    n = 0
    for i in range(LANES):
        found = index[number_of(patterns[i], numbers)]
        lanes[n], lists[n] = np.uint64(i), np.uint64(-1 - np.int64(found))
        n += 1 if found < 0 else 0
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
        for c in range(first, last):
            if is_beyond(changes[c], low, limits[i], limits[np.uint64(LANES) + i]):
                break
            add_terms(c, i, near, terms, errors)
            lowest = least(errors)
            if lowest < low:
                low = lowest
                patterns[i] = near[c, place_of(low, errors)]
    for i in range(LANES):
        chosen[i] = np.uint16(index[number_of(patterns[i], numbers)])


@inlined
def is_beyond(n_changes: np.uint8, low: np.uint32, limit: np.float32, next_limit: np.float32) -> bool:
    """Whether a pattern with so many levels changed has an error above the lowest that was found, given its bits."""
    limit = next_limit if n_changes > 2 else limit
    return (n_changes > 1) & (np.uint32(low).view(np.float32) < limit)


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


# ---- a sub-block ---------------------------------------------------------------------------------------------------


@kernel
def begin(n: int, x: Array, pairs: Array, room: Room) -> None:
    """Sort the weights x [n * LANES] of a sub-block, note their largest magnitudes, and forget what was found."""
    state, keys = room.state, room.keys
    for k in range(n):
        xs, into = row(x, k), row(keys, k)
        for i in range(LANES):
            into[i] = key_of(xs[i], k)
    sort_keys(keys, pairs)
    last = (n - 1) * LANES
    for i in range(LANES):
        state[LARGEST + i] = larger(-weight_of(keys[i]), weight_of(keys[last + i]))
        state[SCALE + i] = ZERO
        state[BEST + i] = -FLT_MAX
        state[SPLIT + i] = -ONE
        state[OFF + i] = ZERO


@kernel
def finish(n: int, first: int, x: Array, w: Array, eps: np.float32, entries: Entries, room: Room) -> None:
    """From the best split of a sub-block to entries, from group `first` of the block on, and the last SCALE.

    SPLIT is (64 * i1 + i2) * 4 + shifts: level 1 begins at sorted position i1 and level 2 at i2, shifts has 2 set where
    the first half of the groups is shifted down, 1 for the second half; negative where no split is of use.
    """
    state = room.state
    cuts = np.empty(2 * LANES, np.int32)
    n_groups = n // GROUP
    for i in range(LANES):
        split = np.int32(state[SPLIT + i])
        is_void = (split < 0) | (state[LARGEST + i] < eps)
        cuts[i] = n if is_void else split >> 8
        cuts[LANES + i] = n if is_void else (split >> 2) & 63
        scale = ZERO if is_void else state[SCALE + i]
        is_negative = scale < ZERO
        state[SCALE + i] = -scale if is_negative else scale
        state[FLIP + i] = ONE if is_negative else ZERO
        low = DELTA if is_negative else -DELTA
        for g in range(n_groups):
            mask = 2 if 2 * g < n_groups else 1
            is_low = (split & mask != 0) & (not is_void)
            room.deltas[g * LANES + i] = low if is_low else -low
    patterns = room.patterns[first * LANES : (first + n_groups) * LANES]
    to_patterns(n, x, room.keys, cuts, state[FLIP : FLIP + LANES], patterns)
    chosen = room.entries[first * LANES : (first + n_groups) * LANES]
    for g in range(n_groups):
        part = slice(g * GROUP * LANES, (g + 1) * GROUP * LANES)
        make_terms(x[part], w[part], state[SCALE : SCALE + LANES], row(room.deltas, g), room.terms)
        make_limits(row(patterns, g), room.terms, room.limits)
        to_entries(row(patterns, g), row(chosen, g), state[OFF : OFF + LANES], entries, room)
    refit(n_groups, x, w, patterns, room.deltas, state)


@inlined
def refit(n_groups: int, x: Array, w: Array, patterns: Array, deltas: Array, state: Array) -> None:
    """The best scale of the entries, in place of SCALE where some are not what was searched for."""
    for i in range(LANES):
        state[SUM_QX + i] = ZERO
        state[SUM_Q2 + i] = ZERO
    for g in range(n_groups):
        part = slice(g * GROUP * LANES, (g + 1) * GROUP * LANES)
        add_sums(ONE_OF_EACH, x[part], w[part], row(patterns, g), row(deltas, g), state)
    for i in range(LANES):
        sum_qx, sum_q2 = state[SUM_QX + i], state[SUM_Q2 + i]
        ratio = sum_qx / sum_q2
        is_better = (state[OFF + i] != ZERO) & (sum_qx > ZERO) & (sum_q2 > ZERO)
        state[SCALE + i] = ratio if is_better else state[SCALE + i]


@inlined
def add_sums(times: Array, x: Array, w: Array, patterns: Array, deltas: Array, state: Array) -> None:
    """Add to SUM_QX and SUM_Q2 the sums of w q x and w q q over a group, where q is `times` the level."""
    for i in range(LANES):
        sum_qx, sum_q2 = state[SUM_QX + i], state[SUM_Q2 + i]
        pattern, delta = patterns[i], deltas[i]
        low, high = delta - ONE, delta + ONE
        for k in range(GROUP):
            q = choice(pattern, k, low, delta, high) * times[i]
            wq = w[k * LANES + i] * q
            sum_qx += wq * x[k * LANES + i]
            sum_q2 += wq * q
        state[SUM_QX + i] = sum_qx
        state[SUM_Q2 + i] = sum_q2
