"""The scales that IQ3_XXS and IQ3_S try for a sub-block (`iq3`), and the groups' entries with each (`iq3_cells`).

Lanes are blocks where groups are rounded. Where entries are found and compared they are the scales of one block, since
a group has the same pattern at several consecutive scales, and these share a list of neighbours.

Loops here index flat arrays with unsigned numbers, which need no test whether they are negative. There are no slices:
numba counts references to each, and such a count takes as long as the rest of a short loop.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from quantize.blocks.iq3_cells import (
    ERROR,
    FOUND,
    GROUP,
    IS_ENTRY,
    N_SCALES,
    ROW,
    SCALE,
    WIDTH,
    Cells,
    Four,
    cell_of,
    find,
    find_one,
    four,
    value,
)
from quantize.blocks.jit import inlined, kernel
from quantize.blocks.lanes import HALF, ONE, ZERO
from quantize.blocks.tiles import LANES, aligned_floats, row
from quantize.tensors import Array

N = 32  # weights of a sub-block
N_GROUPS = N // GROUP
FIFTEEN = np.float32(15)
SUM_LX, SUM_L2, TOP = 3 * ROW, 4 * ROW, 5 * ROW  # rows of the state of a search, behind those of `find`
N_STATE = 6 * ROW


class Search(NamedTuple):
    """The differences between the two types' searches."""

    reach: int  # the largest magnitude is 15 + step / 5 scales, step from -reach to reach
    eps: np.float32  # a sub-block is zero if all magnitudes are smaller
    even_signs: (
        bool  # whether of eight weights an even number is negative: else the least important one is turned
    )
    all_anew: bool  # whether all groups are replaced once more, or those that had no pattern of the codebook


class Room(NamedTuple):
    """What is known of a sub-block in all lanes."""

    x: Array  # float32 [N * LANES]: magnitudes
    w: Array  # weights of the errors
    wx: Array
    root: Array  # of w
    high: Array  # float32 [LANES]: the largest of x
    scale: Array  # float32 [LANES]
    patterns: Array  # int16 [N_GROUPS, n_scales, LANES]: the cells of groups
    changes: Array  # int32 [N_GROUPS, LANES]: bit c is set where the cell is another than at the scale before
    found: Array  # int32 [N_GROUPS, LANES]: packed entries
    anew: Array  # bool [N_GROUPS, LANES]: whether to replace a group once more


@kernel
def round_groups(n_scales: int, tops: Array, high: Array, x: Array, patterns: Array, changes: Array) -> None:
    """The cells of all groups at all scales, and where they change."""
    inverse, bit = aligned_floats(LANES), np.int32(1)
    for k in range(N_GROUPS):
        for i in range(LANES):
            changes[k, i] = 0
    for c in range(n_scales):
        for i in range(LANES):
            inverse[i] = HALF * (tops[c] / high[i])
        for k in range(N_GROUPS):
            _round_group(k, c, x, inverse, patterns)
            if c:
                _mark_changes(k, c, bit, patterns, changes)
        bit = np.int32(bit << 1)


@inlined
def _round_group(k: int, c: int, x: Array, inverse: Array, patterns: Array) -> None:
    for i in range(LANES):
        cell = cell_of(inverse[i], four(x, k, i))
        patterns[np.uint64(k), np.uint64(c), np.uint64(i)] = np.int16(cell)


@inlined
def _mark_changes(k: int, c: int, bit: np.int32, patterns: Array, changes: Array) -> None:
    for i in range(LANES):
        before = patterns[np.uint64(k), np.uint64(c - 1), np.uint64(i)]
        is_new = patterns[np.uint64(k), np.uint64(c), np.uint64(i)] != before
        changes[np.uint64(k), np.uint64(i)] |= bit if is_new else np.int32(0)


@kernel
def search_scales(search: Search, room: Room, cells: Cells, state: Array) -> None:
    """Try all scales, and leave the best with its entries, and which of the groups to replace once more."""
    x, w, wx, root, high = room.x, room.w, room.wx, room.root, room.high
    scale, patterns, changes, found, anew = room.scale, room.patterns, room.changes, room.found, room.anew
    entries, lists, neighbours = cells.entries, cells.lists, cells.neighbours
    n_scales, eps, all_anew = 2 * search.reach + 1, search.eps, search.all_anew
    n_columns = (n_scales + WIDTH - 1) // WIDTH * WIDTH
    packed, bits = np.empty(N_GROUPS * ROW, np.int32), state.view(np.int32)
    no_codes = entries.view(np.int32)[GROUP]
    for i in range(LANES):
        if not high[i] >= eps:
            scale[i] = ZERO
            for k in range(N_GROUPS):
                found[k, i] = 0
                anew[k, i] = False
            continue
        _start(n_columns, high[i], state)
        for k in range(N_GROUPS):
            group, a = four(x, k, i), four(root, k, i)
            left, start, place = int(changes[k, i]) | 1 << n_scales, 0, lists[np.uint64(patterns[k, 0, i])]
            while start < n_scales:
                now, this, end = start, place, _lowest(left)
                is_long = end - start > WIDTH
                start = start + WIDTH if is_long else end
                left = left if is_long else left & (left - 1)
                # the next list is fetched while this one is searched
                cell = patterns[np.uint64(k), np.uint64(min(start, n_scales - 1)), np.uint64(i)]
                place = lists[np.uint64(cell)]
                find(this, now, group, a, entries, neighbours, state)
            _add(k, four(w, k, i), four(wx, k, i), state, bits, packed)
        taken, best_scale = _best(n_scales, high[i], state)
        scale[i] = best_scale
        n_off = 0
        for k in range(N_GROUPS):
            is_off = lists[patterns[k, max(taken, 0), i]] & IS_ENTRY == 0 if taken >= 0 else all_anew
            found[k, i] = packed[k * ROW + taken] if taken >= 0 else no_codes
            anew[k, i] = is_off and best_scale > ZERO
            n_off += anew[k, i]
        for k in range(N_GROUPS):
            anew[k, i] = n_off > 0 if all_anew else anew[k, i]


@inlined
def _lowest(bits: int) -> int:
    """The number of the lowest bit that is set."""
    exponent = np.float32(bits & -bits).view(np.int32) >> 23
    return int(exponent) - 127


@inlined
def _start(n_columns: int, high: np.float32, state: Array) -> None:
    # a number of columns that LLVM does not know: it would unroll the loop, and make no vectors
    for c in range(n_columns):
        inverse = state[TOP + c] / high
        state[SCALE + c] = ONE / inverse
        state[SUM_LX + c] = ZERO
        state[SUM_L2 + c] = ZERO


@inlined
def _add(k: int, w: Four, wx: Four, state: Array, bits: Array, packed: Array) -> None:
    for c in range(N_SCALES):
        sum_lx, sum_l2, entry = state[SUM_LX + c], state[SUM_L2 + c], bits[FOUND + c]
        packed[np.uint64(k * ROW + c)] = entry
        for m in range(GROUP):
            q = value(entry, m)
            sum_lx += wx[m] * q
            sum_l2 += w[m] * q * q
        state[SUM_LX + c] = sum_lx
        state[SUM_L2 + c] = sum_l2


@inlined
def _best(n_scales: int, high: np.float32, state: Array) -> tuple[int, np.float32]:
    """The scale at which the sums are best, or -1; and the scale that they give."""
    for c in range(N_SCALES):
        sum_lx, sum_l2 = state[SUM_LX + c], state[SUM_L2 + c]
        ratio = sum_lx / sum_l2
        state[SUM_LX + c] = sum_lx * sum_lx
        state[SCALE + c] = ratio  # the rows of `find` are free again
        state[ERROR + c] = ratio * sum_lx
    best, taken = ZERO, -1
    for c in range(n_scales):
        sum_l2 = state[SUM_L2 + c]
        if sum_l2 > ZERO and state[SUM_LX + c] > best * sum_l2:
            best, taken = state[ERROR + c], c
    return taken, state[SCALE + taken] if taken >= 0 else np.float32(high / FIFTEEN)


@kernel
def replace_anew(room: Room, cells: Cells) -> None:
    """Replace groups once more, at the best scale, and fit the scale to all entries."""
    x, root, w, wx = room.x, room.root, room.w, room.wx
    scale, anew, found, patterns = room.scale, room.anew, room.found, room.patterns
    lists, packed = cells.lists, cells.packed
    inverse, sums, is_anew = aligned_floats(LANES), aligned_floats(2 * LANES), np.zeros(LANES, np.bool_)
    for i in range(LANES):
        inverse[i] = HALF * (ONE / scale[i])
    for i in range(2 * LANES):
        sums[i] = ZERO
    for k in range(N_GROUPS):
        part = slice(k * GROUP * LANES, (k + 1) * GROUP * LANES)
        _round_group(k, 0, x, inverse, patterns)
        for i in range(LANES):
            if anew[k, i]:
                is_anew[i] = True
                place = lists[patterns[k, 0, i]]
                found[k, i] = find_one(place, scale[i], four(x, k, i), four(root, k, i), packed)
        _add_in_lanes(found[k], w[part], wx[part], sums)
    for i in range(LANES):
        if is_anew[i] and sums[LANES + i] > ZERO:
            scale[i] = sums[i] / sums[LANES + i]


@kernel
def _add_in_lanes(found: Array, w: Array, wx: Array, sums: Array) -> None:
    for m in range(GROUP):
        ws, wxs = row(w, m), row(wx, m)
        for i in range(LANES):
            q = value(found[i], m)
            sums[i] += wxs[i] * q
            sums[LANES + i] += ws[i] * q * q
