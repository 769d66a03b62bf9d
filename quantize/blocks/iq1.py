"""What IQ1_S and IQ1_M share: three levels, -1, 0 and 1, shifted up or down by an eighth, in groups of eight weights.

The weights of a sub-block are sorted, so that two cuts make levels of them. The formats try all pairs of cuts by sums
over the sorted weights; here is what comes before and after.

Source: ggml-quants.c, quantize_row_iq1_s_impl, quantize_row_iq1_m_impl.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from quantize.blocks.iq1_entries import (
    FLT_MAX,
    GROUP,
    Entries,
    Scratch,
    choice,
    larger,
    make_limits,
    make_scratch,
    make_terms,
    to_entries,
)
from quantize.blocks.jit import inlined
from quantize.blocks.lanes import ONE, ZERO
from quantize.blocks.tiles import LANES, aligned_floats, row
from quantize.tensors import Array

QK_K = 256
DELTA = np.float32(0.125)  # by which the levels are shifted
ALL_HIGH = np.int32(0xAAAA)  # the pattern of levels 2: see `Entries`
MAGNITUDE = np.int32(0x7FFFFFFF)
LARGEST_KEY = np.int64(0x7FFFFFFFFFFFFFFF)
ONE_OF_EACH = np.ones(LANES, np.float32)
N_STATE = 8
LARGEST, SCALE, BEST, SPLIT, OFF, FLIP, SUM_QX, SUM_Q2 = (k * LANES for k in range(N_STATE))
"""Rows of the state of a sub-block's lanes.

The largest magnitude; the best scale, its score, and the cuts and shifts that it belongs to (see `finish`); whether
some pattern was no entry; whether the scale was negative, so that all levels change their sign; sums for a last scale.
"""


class Room(NamedTuple):
    """Memory for the search in a sub-block of n weights, in all lanes of a tile."""

    w: Array  # float32 [256 * LANES]: the weights of the errors, of the whole block
    keys: Array  # int64 [n * LANES]: see `key_of`; sorted
    state: Array  # float32 [N_STATE * LANES]
    sums: Array  # float32: sums over the sorted weights, which the formats lay out
    deltas: Array  # float32 [n // GROUP * LANES]: the shift of each group's levels
    entries: Array  # uint16 [256 // GROUP * LANES]: the entries chosen, of the whole block
    patterns: Array  # uint16 [256 // GROUP * LANES]: their patterns
    scratch: Scratch


def make_room(n: int, n_sums: int) -> Room:
    """Memory for sub-blocks of n weights, `n_sums` rows of it sums."""
    n_groups = QK_K // GROUP
    return Room(
        aligned_floats(QK_K * LANES),
        np.empty(n * LANES, np.int64),
        aligned_floats(N_STATE * LANES),
        aligned_floats(n_sums * LANES),
        aligned_floats(n // GROUP * LANES),
        np.empty(n_groups * LANES, np.uint16),
        np.empty(n_groups * LANES, np.uint16),
        make_scratch(),
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


# ---- a sub-block ---------------------------------------------------------------------------------------------------


@inlined
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


@inlined
def finish(n: int, first: int, x: Array, w: Array, eps: np.float32, entries: Entries, room: Room) -> None:
    """From the best split of a sub-block to entries, from group `first` of the block on, and the last SCALE.

    SPLIT is (64 * i1 + i2) * 4 + shifts: level 1 begins at sorted position i1 and level 2 at i2, shifts has 2 set where
    the first half of the groups is shifted down, 1 for the second half; negative where no split is of use.
    """
    state, scratch = room.state, room.scratch
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
        make_terms(x[part], w[part], state[SCALE : SCALE + LANES], row(room.deltas, g), scratch.terms)
        make_limits(row(patterns, g), scratch.terms, scratch.limits)
        to_entries(row(patterns, g), row(chosen, g), state[OFF : OFF + LANES], entries, scratch)
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
