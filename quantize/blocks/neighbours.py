"""Groups of 8 weights snapped onto a codebook, as ggml's iq2_find_best_neighbour does it for IQ2.

An encoder tries a sequence of scales. At each, a group has a pattern of rounded levels (see `codebook`); where the
codebook lacks it, the neighbour of least error is taken: the sum of weight * (scale * q - x) ** 2, q = 2 * level + 1.

Most groups are settled by the neighbours that are a step away, which all lanes compare at once (`neighbour_steps`). For
the others, lists are searched, for runs of scales at which a group has one pattern.

Few of a list's neighbours matter. Where a neighbour differs from the pattern, an earlier one may agree with it, or
differ as little or less on the same side: then no term of the earlier one's error is greater, not in float32 either,
since its operations are monotonous, and the first of equals is taken. That needs each x to be nearest to its own level
by more than rounding errors: every step costs more than these, or `_is_sure`. Where neither is so, the whole list is
searched.

Of the others few errors need be known. Divided by the scale, the difference between two neighbours' errors is

    scale * (A - A') - (B - B'),  A = sum of weight * q * q,  B = 2 * sum of weight * x * q

so that A and B, once for a list, serve all scales of a run, which compete side by side. ggml's float32 sums have the
same winner if it is ahead of the second by more than the rounding errors on both sides (`TOLERANCE`); where it is not,
they are made as ggml makes them (`exact`). For the same reason a neighbour that was ahead at two scales is the best at
all between them, if the pattern is the same (`carry_over`).

Source: ggml-quants.c, iq2_find_best_neighbour.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from quantize.blocks.jit import inlined, inlined_leaf, kernel, leaf
from quantize.blocks.neighbour_lines import (
    GROUP,
    LEAST,
    ROOT,
    SECOND,
    TWICE,
    TWO,
    WIDTH,
    WINNER,
    WX,
    X,
    compete,
    draw,
    exact,
)
from quantize.blocks.neighbour_lists import LENGTH, LENGTH_BITS, Lists
from quantize.blocks.neighbour_steps import (
    EDGES,
    N_STATE,
    TODO,
    TOLERATED,
    UNSURE,
    look_up_steps,
    mark_edges,
    prepare_steps,
    step_first,
    step_only,
    take_steps,
)
from quantize.blocks.tiles import LANES, aligned_floats
from quantize.tensors import Array

TOLERANCE = np.float32(2.0**-17)
"""Of the sum of weight * (5 * scale + |x|) ** 2, of which each error's rounding errors are at most 30 * 2**-24."""
MOST_SCALES = 36  # a lane has up to 19, which are read WIDTH at a time, from any of them on
TINIEST = np.float32(1e-30)  # of that sum; below, subnormal terms might be less precise
ABOVE, BELOW = np.float32(1.0001), np.float32(0.9999)  # times the middle of two levels


class SnapRoom(NamedTuple):
    """What `snap` works on."""

    state: Array  # int32 [N_STATE * LANES]: see `neighbour_steps`
    lanes: Array  # int32 [LANES + 1]
    jobs: Array  # int32 [n, N_JOB]: runs of scales at which a group has one pattern, for which a list is searched
    cell: Array  # float32 [3 * 8]: of one cell x, weights, and weight * x
    scales: Array  # float32 [LANES * MOST_SCALES]
    contest: Array  # float32 [4 * WIDTH]
    lines: Array  # float32
    errors: Array  # float32
    doubtful: Array  # bool [n_groups, LANES]: where the best was not ahead of the others by more than rounding errors


LANE, FIRST, LAST, PLACE, PATTERN, TOUCHED, IS_UNSURE = range(7)
"""Of a job: the lane, first and last scale, the place of the list, the pattern, the list's first, and whether a step
costs nearly nothing."""
N_JOB = 7


@kernel
def snap_room(n_scales: int, n_groups: int, lists: Lists) -> SnapRoom:
    """Room for `snap`."""
    return SnapRoom(
        aligned_floats(N_STATE * LANES).view(np.int32),
        np.empty(LANES + 1, np.int32),
        np.empty((n_scales * LANES, N_JOB), np.int32),
        aligned_floats(3 * GROUP),
        np.ones(LANES * MOST_SCALES, np.float32),
        aligned_floats(4 * WIDTH),
        aligned_floats(2 * (lists.longest + WIDTH)),
        aligned_floats(lists.longest + WIDTH),
        np.empty((n_groups, LANES), np.bool_),
    )


@leaf
def snap(
    rounded: Array, scales: Array, x: Array, root: Array, lists: Lists, room: SnapRoom, snapped: Array
) -> None:
    """Replace the patterns that are not in the codebook by the best of their neighbours.

    Args:
        rounded: uint16 [n_scales, n_groups, LANES].
        scales: float32 [n_scales, LANES], each smaller than the one before.
        x: float32 [n_groups * 8 * LANES].
        root: the weights of the errors, like x.
        lists: the codebook.
        room: from `snap_room`.
        snapped: like `rounded`; the patterns that are in the codebook are copied.
    """
    for s in range(len(scales)):
        for i in range(LANES):
            room.scales[np.uint64(i * MOST_SCALES + s)] = scales[s, i]
    for g in range(rounded.shape[1]):
        part = slice(g * GROUP * LANES, (g + 1) * GROUP * LANES)
        _step(g, rounded, scales, x[part], root[part], lists, room.state, snapped)
        n_jobs = _find_jobs(g, rounded, lists, room)
        for i in range(LANES):
            room.doubtful[g, i] = False
        lane = -1
        for n in range(n_jobs):
            if room.jobs[n, LANE] != lane:
                lane = int(room.jobs[n, LANE])
                _open_cell(g, lane, x, root, room.cell)
            _snap_run(room.jobs[n], lists, room, snapped[:, g, lane], room.doubtful[g])


@leaf
def carry_over(
    rounded: Array, snapped: Array, scales: Array, doubtful: Array, scale: Array, patterns: Array
) -> None:
    """Snap patterns [n_groups, LANES], rounded with the scales [LANES], where `snap` has found the best already.

    That is where the scale lies between two neighbouring ones of `scales`, and at both the pattern was the same and so
    was its best neighbour: differences of errors are lines over the scale.
    """
    for g in range(len(patterns)):
        for s in range(len(rounded) - 1):
            _carry_over(
                *(rounded[s, g], rounded[s + 1, g], snapped[s, g], snapped[s + 1, g]),
                *(scales[s], scales[s + 1], doubtful[g], scale, patterns[g]),
            )


@inlined_leaf
def _carry_over(
    rounded_0: Array,
    rounded_1: Array,
    snapped_0: Array,
    snapped_1: Array,
    high: Array,
    low: Array,
    doubtful: Array,
    scale: Array,
    patterns: Array,
) -> None:
    for i in range(LANES):
        pattern, best = patterns[i], snapped_0[i]
        is_known = (rounded_0[i] == pattern) & (rounded_1[i] == pattern) & (snapped_1[i] == best)
        is_known &= (scale[i] <= high[i]) & (scale[i] >= low[i]) & (not doubtful[i])
        patterns[i] = best if is_known else pattern


@leaf
def _step(
    g: int, rounded: Array, scales: Array, x: Array, root: Array, lists: Lists, state: Array, snapped: Array
) -> None:
    """Take the steps of a group that are best for sure."""
    prepare_steps(scales, x, root, TOLERANCE, TINIEST, state)
    for s in range(len(rounded)):
        patterns, bit = rounded[s, g], np.int32(1 << s)
        look_up_steps(patterns, lists.table, state)
        if lists.is_shorter:
            step_first(bit, patterns, scales[s], x, root, state)
        else:
            step_only(bit, patterns, scales[s], x, root, state)
        mark_edges(bit, patterns, rounded[max(s - 1, 0), g], state)
        take_steps(state, snapped[s, g])


@leaf
def _find_jobs(g: int, rounded: Array, lists: Lists, room: SnapRoom) -> int:
    """The runs of scales for which a list is to be searched."""
    state, lanes = room.state, room.lanes
    n_jobs, n_lanes = 0, 0
    for i in range(LANES):
        lanes[n_lanes] = i
        n_lanes += state[TODO + i] != 0
    at = 0
    while at < n_lanes:  # without a branch, since none could be predicted
        i = int(lanes[at])
        left = np.int32(state[TODO + i])
        lowest = np.int32(left & -left)
        edges = np.int32(state[EDGES + i] & ~np.int32(lowest | (lowest - 1)))
        run = np.int32((edges & -edges) - 1)  # the scales before the next edge, or all
        first, last = _number(lowest), _number(np.int32(left & run))
        job, pattern = room.jobs[n_jobs], np.int32(rounded[first, g, i])
        place = np.int32(lists.table[np.uint64(2 * np.int64(pattern) + 1)])
        job[LANE], job[FIRST], job[LAST] = i, first, last
        job[PLACE], job[PATTERN] = place, pattern
        # the first of the list comes into the cache, while nothing waits for it
        job[TOUCHED] = lists.patterns[np.uint64(place >> LENGTH_BITS), 0]
        job[IS_UNSURE] = np.int32(state[UNSURE + i] & run) >= lowest
        n_jobs += 1
        left = np.int32(left & ~run)
        state[TODO + i] = left
        at += left == 0
    return n_jobs


@inlined
def _number(bits: np.int32) -> int:
    """The number of the highest bit that is set."""
    return int(np.float32(bits).view(np.int32) >> 23) - 127


@inlined_leaf
def _open_cell(g: int, lane: int, x: Array, root: Array, cell: Array) -> None:
    at = g * GROUP * LANES + lane
    for k in range(GROUP):
        o = np.uint64(at + k * LANES)
        cell[X + k], cell[ROOT + k] = x[o], root[o]
    for k in range(GROUP):
        cell[WX + k] = cell[ROOT + k] * cell[X + k]


@inlined_leaf
def _is_sure(pattern: np.int32, high: np.float32, low: np.float32, cell: Array) -> bool:
    """Whether each x is nearest to its level at all scales low .. high, and not almost as near to another."""
    n_sure = np.int32(0)
    for k in range(GROUP):
        level, x = np.int32(np.int32(pattern >> np.int32(2 * k)) & np.int32(3)), cell[X + k]
        above = x > high * (np.float32(2) * np.float32(level)) * ABOVE
        below = x < low * (np.float32(2) * np.float32(level) + TWO) * BELOW
        is_sure = ((level == np.int32(0)) | above) & ((level == np.int32(2)) | below)
        n_sure = np.int32(n_sure + (np.int32(1) if is_sure else np.int32(0)))
    return bool((n_sure == GROUP) & (low > TINIEST))


@inlined_leaf
def _snap_run(job: Array, lists: Lists, room: SnapRoom, snapped: Array, doubtful: Array) -> None:
    """Snap a pattern at the scales of a job."""
    first, last, place, lane = int(job[FIRST]), int(job[LAST]), int(job[PLACE]), int(job[LANE])
    by_lane, tolerance = lane * MOST_SCALES, np.int32(room.state[TOLERATED + lane]).view(np.float32)
    if job[IS_UNSURE] and lists.is_shorter:
        high, low = room.scales[by_lane + first], room.scales[by_lane + last]
        doubtful[lane] = True
        if not _is_sure(job[PATTERN], high, low, room.cell):
            place = int(lists.whole[job[PATTERN]])
    start, n = (place >> LENGTH_BITS) * WIDTH, place & LENGTH
    patterns = lists.patterns.reshape(-1)
    draw(patterns, start, n, room.cell, room.lines)
    for begin in range(first, last + 1, WIDTH):
        for i in range(WIDTH):
            room.contest[TWICE + i] = TWO * room.scales[np.uint64(by_lane + begin + i)]
        compete(n, room.lines, room.contest)
        for i in range(min(WIDTH, last + 1 - begin)):
            lead, best = room.contest[SECOND + i] - room.contest[LEAST + i], room.contest[WINNER + i]
            at = int(best)
            if not lead > tolerance:
                doubtful[lane] = True
                at = exact(room.scales[by_lane + begin + i], start, n, patterns, room.cell, room.errors)
            snapped[begin + i] = patterns[np.uint64(start + at)]
