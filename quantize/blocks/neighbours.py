"""Groups of 8 weights snapped onto a codebook, as ggml's iq2_find_best_neighbour does it for IQ2.

An encoder tries a sequence of scales. At each, a group has a pattern of rounded levels (see `codebook`); where the
codebook lacks it, the neighbour of least error is taken: the sum of weight * (scale * q - x) ** 2, q = 2 * level + 1.

Few of a list's neighbours matter. Where a neighbour differs from the pattern, an earlier one may agree with it, or
differ as little or less on the same side: then no term of the earlier one's error is greater, not in float32 either,
since its operations are monotonous, and the first of equals is taken. That needs each x to be nearest to its own level
by more than rounding errors (`_is_sure`); where one is not, the whole list is searched.

Of the others few errors need be known. Divided by the scale, the difference between two neighbours' errors is

    scale * (A - A') - (B - B'),  A = sum of weight * q * q,  B = 2 * sum of weight * x * q

so that A and B, once for a list, serve all scales of a run, which compete side by side. ggml's float32 sums have the
same winner if it is ahead of the second by more than the rounding errors on both sides (`TOLERANCE`); where it is not,
they are made as ggml makes them (`exact`).

Source: ggml-quants.c, iq2_find_best_neighbour.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import NamedTuple

import numpy as np

from quantize.blocks.codebook import Codebook, codebook
from quantize.blocks.jit import inlined_leaf, kernel, leaf
from quantize.blocks.lanes import ZERO
from quantize.blocks.neighbour_lines import (
    GROUP,
    INFINITY,
    LEAST,
    ROOT,
    SECOND,
    TWO,
    WIDTH,
    WINNER,
    WX,
    X,
    compete,
    draw,
    exact,
)
from quantize.blocks.tiles import LANES, aligned_floats
from quantize.tensors import Array, QType

FIVE = np.float32(5)
TOLERANCE = np.float32(2.0**-17)
"""Of the sum of weight * (5 * scale + |x|) ** 2, of which each error's rounding errors are at most 30 * 2**-24."""
TINIEST = np.float32(1e-30)  # of that sum; below, subnormal terms might be less precise
ABOVE, BELOW = np.float32(1.0001), np.float32(0.9999)  # times the middle of two levels
MOST_SCALES = 36  # a lane has up to 19, which are read WIDTH at a time, from any of them on


class Lists(NamedTuple):
    """A codebook as kernels take it, each list in two versions: shortened, and n lists further on whole."""

    entries: Array  # int32 [1 << 16], by pattern: see `Codebook.index`
    n: int
    is_shorter: bool  # whether any list could be shortened
    starts: Array  # int32 [2 * n]: where lists begin in `patterns`, multiples of WIDTH
    counts: Array  # int32 [2 * n]: how long they are; behind that they are filled up
    patterns: Array  # uint16


@cache
def lists(qtype: QType) -> Lists:
    """The lists of IQ2_XXS, IQ2_XS and IQ2_S."""
    book = codebook(qtype)
    starts, shortened = shortened_lists(book)
    short = replace(book, starts=starts, neighbours=shortened)
    (starts_1, neighbours_1), (starts_2, neighbours_2) = short.padded(WIDTH), book.padded(WIDTH)
    return Lists(
        book.index,
        len(starts) - 1,
        len(shortened) < len(book.neighbours),
        np.concatenate([starts_1[:-1], starts_2[:-1] + starts_1[-1]]),
        np.concatenate([np.diff(short.starts), np.diff(book.starts)]),
        book.patterns[np.concatenate([neighbours_1, neighbours_2])],
    )


def shortened_lists(book: Codebook) -> tuple[Array, Array]:
    """The lists without the neighbours that lie beyond an earlier one: `Codebook.starts` and `Codebook.neighbours`."""
    off = np.flatnonzero(book.index < 0)
    off = off[np.argsort(-book.index[off])]  # patterns, by list
    levels = (off[:, None] >> 2 * np.arange(GROUP) & 3).astype(np.int8)
    counts = np.diff(book.starts)
    of_list = np.repeat(np.arange(len(off)), counts)
    moves = book.levels[book.neighbours].astype(np.int8) - levels[of_list]
    # a move is 1 or 2 levels up or down: as bits, a nearer move is a part of a farther one
    bits = np.zeros(len(moves), np.uint32)
    for k in range(GROUP):
        for step, bit in ((1, 1), (2, 2), (-1, 4), (-2, 8)):
            reached = moves[:, k] * np.sign(step) >= abs(step)
            bits |= (reached * (bit << 4 * k)).astype(np.uint32)
    is_kept = np.ones(len(moves), bool)
    _drop(bits, book.starts, is_kept)
    starts = np.concatenate([[0], np.cumsum(np.bincount(of_list[is_kept], minlength=len(off)))])
    return starts.astype(np.int32), book.neighbours[is_kept]


@kernel
def _drop(bits: Array, starts: Array, is_kept: Array) -> None:
    for number in range(len(starts) - 1):
        for j in range(starts[number], starts[number + 1]):
            for earlier in range(starts[number], j):
                if is_kept[earlier] and bits[earlier] & ~bits[j] == 0:
                    is_kept[j] = False
                    break


class SnapRoom(NamedTuple):
    """What `snap` works on."""

    edges: Array  # int32 [LANES]: bit s is set where the pattern at scale s is not that at s - 1
    jobs: Array  # int32 [n, 7]: cell (group * LANES + lane), first and last scale; list, its start, length; pattern
    cell: Array  # float32 [3 * 8]: of one cell x, weights, and weight * x
    scales: Array  # float32 [LANES, MOST_SCALES]
    contest: Array  # float32 [3 * WIDTH]
    lines: Array  # float32


@kernel
def snap_room(n_scales: int, n_groups: int, lists: Lists) -> SnapRoom:
    """Room for `snap`."""
    longest = 0
    for count in lists.counts:
        longest = max(longest, count)
    return SnapRoom(
        np.empty(LANES, np.int32),
        np.empty((n_scales * n_groups * LANES + 1, 7), np.int32),
        np.empty(3 * GROUP, np.float32),
        np.ones((LANES, MOST_SCALES), np.float32),
        aligned_floats(3 * WIDTH),
        aligned_floats(2 * (longest + WIDTH)),
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
    cell, tolerance = -1, ZERO
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
            tolerance = _prepare(by_lane[0], by_lane[len(scales) - 1], room.cell)
        _snap_run(job, by_lane, tolerance, lists, room, snapped[:, cell // LANES, lane])


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
            job[3], job[4], job[5] = number, start, lists.counts[number]
            job[6] = rounded[first, g, i]
            job[6] ^= lists.patterns[start]  # into the cache, while nothing waits for it
            job[6] ^= lists.patterns[start]
            n_jobs += found < 0
            first = last
    return n_jobs


@inlined_leaf
def _prepare(high: np.float32, low: np.float32, cell: Array) -> np.float32:
    """Prepare a cell for scales low .. high: by how much the least of its lines must be ahead."""
    total = ZERO
    for k in range(GROUP):
        reach = FIVE * high + abs(cell[X + k])
        total += cell[ROOT + k] * reach * reach
        cell[WX + k] = cell[ROOT + k] * cell[X + k]
    return TOLERANCE * total / (np.float32(4) * low) if total > TINIEST else INFINITY


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
def _snap_run(
    job: Array, scales: Array, tolerance: np.float32, lists: Lists, room: SnapRoom, snapped: Array
) -> None:
    """Snap a pattern at the scales of a job."""
    first, last, number = job[1], job[2], job[3]
    start, n = job[4], job[5]
    if lists.is_shorter and not _is_sure(job[6], scales[first], scales[last], room.cell):
        start, n = lists.starts[lists.n + number], lists.counts[lists.n + number]
    patterns = lists.patterns[start : start + (n + WIDTH - 1) // WIDTH * WIDTH]
    draw(patterns, n, room.cell, room.lines)
    for begin in range(first, last + 1, WIDTH):
        compete(scales[begin : begin + WIDTH], n, room.lines, room.contest)
        for s in range(begin, min(begin + WIDTH, last + 1)):
            i = s - begin
            lead, best = room.contest[SECOND + i] - room.contest[LEAST + i], room.contest[WINNER + i]
            at = int(best) if lead > tolerance else exact(scales[s], n, patterns, room.cell)
            snapped[s] = patterns[at]
