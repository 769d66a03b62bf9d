"""What IQ1_S and IQ1_M share: weights of three levels, in groups of eight, of which a codebook knows 2048.

Source: ggml-quants.c, quantize_row_iq1_s_impl, quantize_row_iq1_m_impl, iq1_find_best_neighbour2, iq2xs_init_impl.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import gguf.quants
import numpy as np

from quantize.blocks.jit import inlined, kernel
from quantize.blocks.lanes import ONE, ZERO
from quantize.blocks.tiles import LANES, aligned_floats, row
from quantize.tensors import Array

QK_K = 256
GROUP = 8  # weights of an entry of the codebook
N_CODES = 3**GROUP
DELTA = np.float32(0.125)  # by which the levels -1, 0, 1 are shifted, up or down
CHUNK = 16  # neighbours that are looked at together
N_SHELLS = 3  # distances at which an entry still is a neighbour

FLT_MAX = np.finfo(np.float32).max
MAGNITUDE = np.int32(0x7FFFFFFF)
ONE_OF_EACH = np.ones(LANES, np.float32)
LARGEST_KEY = np.int64(0x7FFFFFFFFFFFFFFF)
NONE = np.uint16(0)
MIDDLE, HIGH = (tuple(np.uint16(bit << 2 * k) for k in range(GROUP)) for bit in (1, 2))  # of the levels in a word
N_STATE = 8
LARGEST, SCALE, BEST, SPLIT, OFF, FLIP, SUM_QX, SUM_Q2 = (k * LANES for k in range(N_STATE))


class Codebook(NamedTuple):
    """The entries, and those near each group of levels that is no entry.

    The code of a group is the sum of level[k] * 3^k, levels from 0 to 2; its word that of level[k] << 2 k.
    """

    entries: Array  # int32 [N_CODES]: the entry that a code is; else -1 - the first of its neighbours
    counts: Array  # int32 [N_CODES]: its chunks of neighbours
    words: Array  # uint16: the neighbours' words, in ggml's order; the last chunk is filled up with the first
    neighbours: Array  # uint16: their entries
    grid: Array  # uint16 [2048]: the word of each entry


@cache
def codebook() -> Codebook:
    """The codebook, built when it is first asked for."""
    quants: Any = gguf.quants  # its grids have no types
    quants.IQ1_S.init_grid()
    levels = np.asarray(quants.IQ1_S.grid, np.int64).reshape(-1, GROUP) + 1
    grid = (levels << 2 * np.arange(GROUP)).sum(axis=1).astype(np.uint16)
    points = np.arange(N_CODES)[:, None] // 3 ** np.arange(GROUP) % 3
    entries = np.full(N_CODES, -1, np.int32)
    entries[(levels * 3 ** np.arange(GROUP)).sum(axis=1)] = np.arange(len(grid))
    counts = np.zeros(N_CODES, np.int32)
    lists: list[Array] = []
    n = 0
    squares = (levels**2).sum(axis=1)
    for code in np.flatnonzero(entries < 0):
        distances = squares - 2 * (levels @ points[code])
        last = np.unique(distances)[N_SHELLS - 1]
        near = np.flatnonzero(distances <= last)
        near = near[np.argsort(distances[near], kind="stable")]
        counts[code] = -(-len(near) // CHUNK)
        entries[code] = -1 - n
        lists.append(np.append(near, np.full(CHUNK * counts[code] - len(near), near[0])))
        n += CHUNK * int(counts[code])
    neighbours = np.concatenate(lists).astype(np.uint16)
    return Codebook(entries, counts, grid[neighbours], neighbours, grid)


@cache
def entry_levels() -> Array:
    """The levels -1, 0 and 1 of each entry: float32 [2048, GROUP]."""
    words = codebook().grid.astype(np.int32)[:, None]
    return ((words >> 2 * np.arange(GROUP) & 3) - 1).astype(np.float32)


class Room(NamedTuple):
    """Memory for the search in a sub-block of n weights, in all lanes of a tile."""

    w: Array  # float32 [256 * LANES]: the weights of the errors, of the whole block
    keys: Array  # int64 [n * LANES]: see `make_keys`
    ordered: Array  # int64 [n * LANES]: the same, sorted
    state: Array  # float32 [N_STATE * LANES]
    sums: Array  # float32: sums over the sorted weights, which the formats lay out
    codes: Array  # int32 [n // GROUP * LANES]: see `Codebook`
    deltas: Array  # float32 [n // GROUP * LANES]: the shift of each group's levels
    terms: Array  # float32 [GROUP * 3 * LANES]
    best: Array  # float32 [CHUNK]
    at: Array  # int32 [CHUNK]
    entries: Array  # int32 [256 // GROUP * LANES]: the entries chosen, of the whole block
    words: Array  # uint16 [256 // GROUP * LANES]: their words


def make_room(n: int, n_sums: int) -> Room:
    """Memory for sub-blocks of n weights, `n_sums` rows of them sums."""
    n_groups = QK_K // GROUP
    return Room(
        aligned_floats(QK_K * LANES),
        np.empty(n * LANES, np.int64),
        np.empty(n * LANES, np.int64),
        aligned_floats(N_STATE * LANES),
        aligned_floats(n_sums * LANES),
        np.empty(n // GROUP * LANES, np.int32),
        aligned_floats(n // GROUP * LANES),
        aligned_floats(GROUP * 3 * LANES),
        aligned_floats(CHUNK),
        np.empty(CHUNK, np.int32),
        np.empty(n_groups * LANES, np.int32),
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


@kernel
def make_keys(n: int, x: Array, keys: Array) -> None:
    """Keys int64 [n * LANES] that order weights x by value, and equal ones by position, as a stable sort does."""
    for k in range(n):
        xs, key = row(x, k), row(keys, k)
        for i in range(LANES):
            bits = np.float32(xs[i] + ZERO).view(np.int32)  # -0 becomes 0
            ordered = np.int32(bits ^ np.int32(np.int32(bits >> np.int32(31)) & MAGNITUDE))
            key[i] = np.int64(np.int64(ordered) << np.int64(32)) | np.int64(k)


@kernel
def sort_keys(keys: Array, pairs: Array) -> None:
    """Sort each lane of keys."""
    for p in range(len(pairs)):
        low, high = row(keys, pairs[p, 0]), row(keys, pairs[p, 1])
        for i in range(LANES):
            a, b = low[i], high[i]
            low[i] = a if a < b else b
            high[i] = b if a < b else a


@kernel
def group_codes(n: int, keys: Array, ordered: Array, cuts: Array, codes: Array) -> None:
    """The codes int32 [n // GROUP * LANES] of levels that two cuts between the sorted weights make.

    keys and ordered are int64 [n * LANES]; cuts int32 [2 * LANES]: the positions where levels 1 and 2 begin.
    """
    first, second = np.empty(LANES, np.int64), np.empty(LANES, np.int64)
    for i in range(LANES):
        a, b = cuts[i], cuts[LANES + i]
        first[i] = ordered[a * LANES + i] if a < n else LARGEST_KEY
        second[i] = ordered[b * LANES + i] if b < n else LARGEST_KEY
    for g in range(n // GROUP):
        part, code = keys[g * GROUP * LANES : (g + 1) * GROUP * LANES], row(codes, g)
        for i in range(LANES):
            total = np.int32(0)
            power = np.int32(1)
            for k in range(GROUP):
                key = part[k * LANES + i]
                one = power if key >= first[i] else np.int32(0)
                two = power if key >= second[i] else np.int32(0)
                total = np.int32(total + np.int32(one + two))
                power = np.int32(power * np.int32(3))
            code[i] = total


# ---- the codebook --------------------------------------------------------------------------------------------------


@inlined
def level(word: np.uint16, k: int, delta: np.float32) -> np.float32:
    """The value -1, 0 or 1 of weight k of a word, shifted."""
    middle, high = np.uint16(word & MIDDLE[k]), np.uint16(word & HIGH[k])
    value = delta if middle != NONE else np.float32(delta - np.float32(1))
    return np.float32(delta + np.float32(1)) if high != NONE else value


@kernel
def make_terms(x: Array, w: Array, scale: Array, delta: Array, terms: Array) -> None:
    """The errors of the weights x of one group at each of the levels: float32 [GROUP * 3 * LANES]."""
    for k in range(GROUP):
        xs, ws, part = row(x, k), row(w, k), terms[3 * k * LANES : 3 * (k + 1) * LANES]
        for i in range(LANES):
            for c in range(3):
                diff = scale[i] * (delta[i] + np.float32(c - 1)) - xs[i]
                part[c * LANES + i] = ws[i] * diff * diff


@kernel
def nearest_entry(i: int, terms: Array, words: Array, best: Array, at: Array) -> np.int32:
    """The neighbour of lane i with the least error, the first of several; -1 where no error is finite."""
    for p in range(CHUNK):
        best[p] = FLT_MAX
        at[p] = -1
    lane = terms[i:]
    for c in range(len(words) // CHUNK):
        part = words[c * CHUNK : (c + 1) * CHUNK]
        for p in range(CHUNK):
            word = part[p]
            error = ZERO
            for k in range(GROUP):
                low, middle, high = lane[3 * k * LANES], lane[(3 * k + 1) * LANES], lane[(3 * k + 2) * LANES]
                term = middle if np.uint16(word & MIDDLE[k]) != NONE else low
                term = high if np.uint16(word & HIGH[k]) != NONE else term
                error += term
            is_less = error < best[p]
            best[p] = error if is_less else best[p]
            at[p] = np.int32(c * CHUNK + p) if is_less else at[p]
    found = np.int32(-1)
    least = FLT_MAX
    for p in range(CHUNK):
        if best[p] < least or (best[p] == least and at[p] < found):
            least, found = best[p], at[p]
    return found


@kernel
def to_entries(g: int, codes: Array, book: Codebook, room: Room) -> None:
    """The entries of group g of the block: what the codes are, else their best neighbour, and OFF is set.

    Where all errors overflow ggml reads beyond its arrays, and aborts; here the nearest neighbour is taken.
    """
    words, entries = row(room.words, g), row(room.entries, g)
    for i in range(LANES):
        code = codes[i]
        entry = book.entries[code]
        if entry < 0:
            first = -1 - entry
            near = book.words[first : first + CHUNK * book.counts[code]]
            entry = book.neighbours[first + max(nearest_entry(i, room.terms, near, room.best, room.at), 0)]
            room.state[OFF + i] = ONE
        words[i] = book.grid[entry]
        entries[i] = entry


# ---- a sub-block ---------------------------------------------------------------------------------------------------


@kernel
def begin(n: int, x: Array, pairs: Array, room: Room) -> None:
    """Sort the weights x [n * LANES] of a sub-block, note their largest magnitudes, and forget what was found."""
    state = room.state
    for i in range(LANES):
        state[LARGEST + i] = ZERO
        state[SCALE + i] = ZERO
        state[BEST + i] = -FLT_MAX
        state[SPLIT + i] = -ONE
        state[OFF + i] = ZERO
    for k in range(n):
        xs = row(x, k)
        for i in range(LANES):
            size = abs(xs[i])
            largest = state[LARGEST + i]
            state[LARGEST + i] = largest if largest > size else size
    make_keys(n, x, room.keys)
    room.ordered[:] = room.keys
    sort_keys(room.ordered, pairs)


@kernel
def finish(n: int, first: int, x: Array, w: Array, eps: np.float32, book: Codebook, room: Room) -> None:
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
    group_codes(n, room.keys, room.ordered, cuts, room.codes)
    for g in range(n_groups):
        codes, part = row(room.codes, g), slice(g * GROUP * LANES, (g + 1) * GROUP * LANES)
        for i in range(LANES):
            codes[i] = N_CODES - 1 - codes[i] if state[FLIP + i] != ZERO else codes[i]
        make_terms(x[part], w[part], state[SCALE : SCALE + LANES], row(room.deltas, g), room.terms)
        to_entries(first + g, codes, book, room)
    refit(n_groups, x, w, room.words[first * LANES :], room.deltas, state)


@kernel
def refit(n_groups: int, x: Array, w: Array, words: Array, deltas: Array, state: Array) -> None:
    """The best scale of the entries, in place of SCALE where some are not what was searched for."""
    for i in range(LANES):
        state[SUM_QX + i] = ZERO
        state[SUM_Q2 + i] = ZERO
    for g in range(n_groups):
        part = slice(g * GROUP * LANES, (g + 1) * GROUP * LANES)
        add_sums(ONE_OF_EACH, x[part], w[part], row(words, g), row(deltas, g), state)
    for i in range(LANES):
        sum_qx, sum_q2 = state[SUM_QX + i], state[SUM_Q2 + i]
        ratio = sum_qx / sum_q2
        is_better = (state[OFF + i] != ZERO) & (sum_qx > ZERO) & (sum_q2 > ZERO)
        state[SCALE + i] = ratio if is_better else state[SCALE + i]


@kernel
def add_sums(times: Array, x: Array, w: Array, words: Array, deltas: Array, state: Array) -> None:
    """Add to SUM_QX and SUM_Q2 the sums of w q x and w q q over a group, where q is `times` the level."""
    for i in range(LANES):
        sum_qx, sum_q2 = state[SUM_QX + i], state[SUM_Q2 + i]
        word, delta = words[i], deltas[i]
        for k in range(GROUP):
            q = level(word, k, delta) * times[i]
            wq = w[k * LANES + i] * q
            sum_qx += wq * x[k * LANES + i]
            sum_q2 += wq * q
        state[SUM_QX + i] = sum_qx
        state[SUM_Q2 + i] = sum_q2


@inlined
def weight_of(key: np.int64) -> np.float32:
    """The weight that a key orders, 0 for -0."""
    ordered = np.int32(key >> np.int64(32))
    return np.int32(ordered ^ np.int32(np.int32(ordered >> np.int32(31)) & MAGNITUDE)).view(np.float32)


@inlined
def place_of(key: np.int64) -> np.int64:
    """The position of the weight that a key orders."""
    return np.int64(key & np.int64(31))
