"""Groups of 8 weights snapped onto a codebook, as ggml's iq2_find_best_neighbour does it for IQ2.

An encoder tries a sequence of scales. At each, a group has a pattern of rounded levels (see `codebook`); where the
codebook lacks it, the neighbour of least error is taken: the sum of weight * (scale * q - x) ** 2, q = 2 * level + 1.

Most of these errors need not be known. Divided by the scale, the difference between two neighbours' errors is

    scale * (A - A') - (B - B'),  A = sum of weight * q * q,  B = 2 * sum of weight * x * q

so that A and B, once for a list, serve all scales; and since that is linear, who is best at two scales is best between
them. That is exact arithmetic: ggml's float32 sums have the same winner if it is ahead of all others by more than the
rounding errors on both sides (`TOLERANCE`). Where it is not, they are made as ggml makes them (`_exact`).

Source: ggml-quants.c, iq2_find_best_neighbour.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np

from quantize.blocks.codebook import codebook
from quantize.blocks.jit import inlined_leaf, kernel, leaf
from quantize.blocks.lanes import ZERO
from quantize.blocks.neighbour_lines import (
    AT_FIRST,
    AT_LAST,
    CHUNK,
    GROUP,
    INFINITY,
    LEAST,
    ROOT,
    SECOND,
    TWO,
    WIDTH,
    WINNER,
    WX,
    A,
    B,
    X,
    compete,
    count_between,
    draw,
    exact,
    place,
    winner,
)
from quantize.blocks.tiles import LANES, aligned_floats
from quantize.tensors import Array, QType

FIVE = np.float32(5)
TOLERANCE = np.float32(2.0**-17)
"""Of the sum of weight * (5 * scale + |x|) ** 2, of which each error's rounding errors are at most 30 * 2**-24."""
TINIEST = np.float32(1e-30)  # of that sum; below, subnormal terms might be less precise
MOST_SCALES = 32  # a lane's scales are read WIDTH at a time


class Lists(NamedTuple):
    """A codebook as kernels take it."""

    entries: Array  # int32 [1 << 16], by pattern: see `Codebook.index`
    starts: Array  # int32 [n_lists + 1]: where lists begin in `patterns`, multiples of WIDTH
    counts: Array  # int32 [n_lists]: how long they are; behind that they are filled up
    patterns: Array  # uint16
    longest: int


@cache
def lists(qtype: QType) -> Lists:
    """The lists of IQ2_XXS, IQ2_XS and IQ2_S."""
    book = codebook(qtype)
    starts, neighbours = book.padded(WIDTH)
    return Lists(
        book.index, starts, np.diff(book.starts), book.patterns[neighbours], int(np.diff(starts).max())
    )


class SnapRoom(NamedTuple):
    """What `snap` works on."""

    edges: Array  # int32 [LANES]: bit s is set where the pattern at scale s is not that at s - 1
    jobs: Array  # int32 [n, 6]: cell (group * LANES + lane), first and last scale, list: its start and length
    cell: Array  # float32 [3 * 8]: of one cell x, weights, and weight * x
    scales: Array  # float32 [LANES, MOST_SCALES]
    contest: Array  # float32 [3 * WIDTH]
    lines: Array  # float32 [n_chunks * 4 * CHUNK]: A and B of a list's neighbours, and what they come to at two scales
    bits: Array  # int32: the same memory


@kernel
def snap_room(n_scales: int, n_groups: int, lists: Lists) -> SnapRoom:
    """Room for `snap`."""
    lines = aligned_floats(4 * (lists.longest + CHUNK))
    return SnapRoom(
        np.empty(LANES, np.int32),
        np.empty((n_scales * n_groups * LANES + 1, 6), np.int32),
        np.empty(3 * GROUP, np.float32),
        np.ones((LANES, MOST_SCALES), np.float32),
        aligned_floats(3 * WIDTH),
        lines,
        lines.view(np.int32),
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
    n_jobs = 0
    for g in range(rounded.shape[1]):
        for s in range(len(rounded)):
            _copy(rounded[s, g], snapped[s, g])
        n_jobs = _find_jobs(rounded, g, lists, room.edges, room.jobs, n_jobs)
    cell, offset, tolerance = -1, ZERO, ZERO
    for n in range(n_jobs):
        job = room.jobs[n]
        lane = job[0] % LANES
        by_lane = room.scales[lane]
        if job[0] != cell:
            cell = job[0]
            at = cell // LANES * GROUP * LANES + lane
            for k in range(GROUP):
                room.cell[X + k], room.cell[ROOT + k] = x[at + k * LANES], root[at + k * LANES]
            for k in range(len(scales)):
                by_lane[k] = scales[k, lane]
            offset, tolerance = _prepare(by_lane[0], by_lane[len(scales) - 1], room.cell)
        _snap_run(job, by_lane, tolerance, offset, lists, room, snapped[:, cell // LANES, lane])


@inlined_leaf
def _copy(patterns: Array, snapped: Array) -> None:
    for i in range(LANES):
        snapped[i] = patterns[i]


@inlined_leaf
def _find_jobs(rounded: Array, g: int, lists: Lists, edges: Array, jobs: Array, n_jobs: int) -> int:
    """Add the runs of scales at which a group has one pattern, which the codebook lacks."""
    n_scales = len(rounded)
    for i in range(LANES):
        edges[i] = np.int32(1 << n_scales)
    for s in range(1, n_scales):
        before, here = rounded[s - 1, g], rounded[s, g]
        bit = np.int32(1 << s)
        for i in range(LANES):
            edges[i] |= bit if here[i] != before[i] else np.int32(0)
    for i in range(LANES):
        first, left = 0, np.int32(edges[i])
        while left:
            lowest = np.int32(left & -left)
            left = np.int32(left ^ lowest)
            last = int(np.float32(lowest).view(np.int32) >> 23) - 127  # the number of the bit
            found = lists.entries[rounded[first, g, i]]
            job = jobs[n_jobs]
            number = max(-1 - found, 0)
            start = lists.starts[number]
            job[0], job[1], job[2] = g * LANES + i, first, last - 1
            job[3], job[4] = start, lists.counts[number]
            job[5] = lists.patterns[start]  # into the cache, while nothing waits for it
            n_jobs += found < 0
            first = last
    return n_jobs


@inlined_leaf
def _prepare(high: np.float32, low: np.float32, cell: Array) -> tuple[np.float32, np.float32]:
    """Prepare a cell for scales low .. high: an offset that keeps its lines positive, and their tolerance."""
    offset = total = ZERO
    for k in range(GROUP):
        magnitude = abs(cell[X + k])
        reach = FIVE * high + magnitude
        total += cell[ROOT + k] * reach * reach
        offset += cell[ROOT + k] * magnitude
        cell[WX + k] = cell[ROOT + k] * cell[X + k]
    tolerance = TOLERANCE * total / (np.float32(4) * low)
    return TWO * offset, tolerance if total > TINIEST else INFINITY


@inlined_leaf
def _snap_run(
    job: Array,
    scales: Array,
    tolerance: np.float32,
    offset: np.float32,
    lists: Lists,
    room: SnapRoom,
    snapped: Array,
) -> None:
    """Snap a pattern at the scales of a job.

    In long lists, one neighbour is mostly best at the first scale, one at the last, and no third at any between.
    """
    first, last, start, n = job[1], job[2], job[3], job[4]
    patterns = lists.patterns[start : start + (n + WIDTH - 1) // WIDTH * WIDTH]
    draw(patterns, n, offset, scales[first], scales[last], room.cell, room.lines)
    is_done = False
    if n > WIDTH:
        is_done = _snap_between(first, last, scales, tolerance, patterns, n, room, snapped)
    if not is_done:
        for start in range(first, last + 1, WIDTH):
            compete(scales[start : start + WIDTH], n, room.lines, room.contest)
            for s in range(start, min(start + WIDTH, last + 1)):
                i = s - start
                lead, best = room.contest[SECOND + i] - room.contest[LEAST + i], room.contest[WINNER + i]
                at = int(best) if lead > tolerance else exact(scales[s], n, patterns, room.cell)
                snapped[s] = patterns[at]


@inlined_leaf
def _snap_between(
    first: int,
    last: int,
    scales: Array,
    tolerance: np.float32,
    patterns: Array,
    n: int,
    room: SnapRoom,
    snapped: Array,
) -> bool:
    """Snap by the best at the first and at the last scale; False if that is not enough."""
    n_chunks, lines = (n + CHUNK - 1) // CHUNK, room.lines
    at_first = winner(AT_FIRST, n_chunks, tolerance, lines, room.bits)
    at_last = winner(AT_LAST, n_chunks, tolerance, lines, room.bits)
    if (at_first < 0) | (at_last < 0):
        return False
    one, other = place(at_first), place(at_last)
    limits = lines[AT_FIRST + other] + tolerance, lines[AT_LAST + one] + tolerance
    is_sure = count_between(limits, n_chunks, lines) == 1 + (at_first != at_last)
    slope, shift = TWO * (lines[A + one] - lines[A + other]), lines[B + one] - lines[B + other]
    for s in range(first, last + 1):
        lead = shift - slope * scales[s]
        is_sure &= (abs(lead) > tolerance) | (at_first == at_last)
        snapped[s] = patterns[at_first if lead > ZERO else at_last]
    return is_sure
