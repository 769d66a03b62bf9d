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
from quantize.blocks.jit import inlined, inlined_leaf, kernel, leaf
from quantize.blocks.lanes import ZERO
from quantize.blocks.tiles import LANES, aligned_floats
from quantize.tensors import Array, QType

GROUP = 8
WIDTH = 16  # neighbours side by side
CHUNK = 64  # neighbours of which the best is found together; LLVM would unroll shorter loops, and not vectorise them
LARGEST = np.float32(3.4028234663852886e38)  # FLT_MAX
INFINITY = np.float32(np.inf)
TOLERANCE = np.float32(2.0**-17)
"""Of the sum of weight * (5 * scale + |x|) ** 2, of which each error's rounding errors are at most 30 * 2**-24."""
TINIEST = np.float32(1e-30)  # of that sum; below, subnormal terms might be less precise
TWO, THREE, FIVE = np.float32(2), np.float32(3), np.float32(5)
ONE_CLOSE = np.int32(1 << 16)  # counts in the upper half, sums of places in the lower

Eight = tuple[np.float32, np.float32, np.float32, np.float32, np.float32, np.float32, np.float32, np.float32]


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
    lines: Array  # float32 [n_chunks * 4 * CHUNK]: A and B of a list's neighbours, and what they come to at two scales
    bits: Array  # int32: the same memory


A, B, AT_FIRST, AT_LAST = (r * CHUNK for r in range(4))
X, ROOT, WX = (r * GROUP for r in range(3))


@kernel
def snap_room(n_scales: int, n_groups: int, lists: Lists) -> SnapRoom:
    """Room for `snap`."""
    lines = aligned_floats(4 * (lists.longest + CHUNK))
    return SnapRoom(
        np.empty(LANES, np.int32),
        np.empty((n_scales * n_groups * LANES + 1, 6), np.int32),
        np.empty(3 * GROUP, np.float32),
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
        if job[0] != cell:
            cell = job[0]
            at = cell // LANES * GROUP * LANES + lane
            for k in range(GROUP):
                room.cell[X + k], room.cell[ROOT + k] = x[at + k * LANES], root[at + k * LANES]
            offset, tolerance = _prepare(scales[0, lane], scales[len(scales) - 1, lane], room.cell)
        _snap_run(job, scales[:, lane], offset, tolerance, lists, room, snapped[:, cell // LANES, lane])


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
    offset: np.float32,
    tolerance: np.float32,
    lists: Lists,
    room: SnapRoom,
    snapped: Array,
) -> None:
    """Snap a pattern at the scales of a job.

    Mostly one neighbour is best at the first scale, one at the last, and no third is at any scale between.
    """
    first, last, start, n = job[1], job[2], job[3], job[4]
    patterns = lists.patterns[start : start + (n + WIDTH - 1) // WIDTH * WIDTH]
    n_chunks = (n + CHUNK - 1) // CHUNK
    lines = room.lines
    _draw(patterns, n, offset, scales[first], scales[last], room.cell, lines)
    at_first = _winner(AT_FIRST, n_chunks, tolerance, lines, room.bits)
    at_last = _winner(AT_LAST, n_chunks, tolerance, lines, room.bits)
    is_sure = (at_first >= 0) & (at_last >= 0)
    if is_sure:
        one, other = _place(at_first), _place(at_last)
        limits = lines[AT_FIRST + other] + tolerance, lines[AT_LAST + one] + tolerance
        is_sure = _count_between(limits, n_chunks, lines) == 1 + (at_first != at_last)
        slope, shift = TWO * (lines[A + one] - lines[A + other]), lines[B + one] - lines[B + other]
        for s in range(first, last + 1):
            lead = shift - slope * scales[s]
            is_sure &= (abs(lead) > tolerance) | (at_first == at_last)
            snapped[s] = patterns[at_first if lead > ZERO else at_last]
    if not is_sure:
        _snap_unsure(first, last, scales, tolerance, patterns, n, room, snapped)


@inlined
def _place(number: int) -> int:
    """Where the lines of a neighbour begin."""
    return number // CHUNK * 4 * CHUNK + number % CHUNK


@leaf
def _snap_unsure(
    low: int,
    last: int,
    scales: Array,
    tolerance: np.float32,
    patterns: Array,
    n: int,
    room: SnapRoom,
    snapped: Array,
) -> None:
    """Snap with the lines that are drawn, by bisection; -1 is a winner in doubt."""
    n_chunks = (n + CHUNK - 1) // CHUNK
    at_low = _winner(AT_FIRST, n_chunks, tolerance, room.lines, room.bits)
    at_last = _winner(AT_LAST, n_chunks, tolerance, room.lines, room.bits)
    snapped[low] = patterns[at_low if at_low >= 0 else _exact(scales[low], n, patterns, room.cell)]
    while low < last:
        high, at_high = last, at_last
        while ((at_low != at_high) | (at_low < 0)) and high > low + 1:
            high = (low + high) >> 1
            _evaluate(scales[high], n_chunks, room.lines)
            at_high = _winner(AT_FIRST, n_chunks, tolerance, room.lines, room.bits)
        for s in range(low + 1, high):
            snapped[s] = patterns[at_low]
        snapped[high] = patterns[at_high if at_high >= 0 else _exact(scales[high], n, patterns, room.cell)]
        low, at_low = high, at_high


@inlined_leaf
def _draw(
    patterns: Array,
    n: int,
    offset: np.float32,
    first: np.float32,
    last: np.float32,
    cell: Array,
    lines: Array,
) -> None:
    """The lines of the first n patterns, whole chunks of them: A by 8 and B by 4, less those of levels 0."""
    w, wx = _eight(cell[ROOT:WX]), _eight(cell[WX:])
    for j in range(0, len(patterns), WIDTH):
        at = j // CHUNK * 4 * CHUNK + j % CHUNK
        n_left = np.int32(n - j)
        _draw_row(patterns[j : j + WIDTH], n_left, offset, first, last, w, wx, lines[at : at + 4 * CHUNK])
    for j in range(len(patterns), (n + CHUNK - 1) // CHUNK * CHUNK, WIDTH):
        at = j // CHUNK * 4 * CHUNK + j % CHUNK
        _fill_row(lines[at : at + 4 * CHUNK])


@inlined
def _fill_row(lines: Array) -> None:
    for i in range(WIDTH):
        lines[A + i] = INFINITY
        lines[B + i] = ZERO
        lines[AT_FIRST + i] = INFINITY
        lines[AT_LAST + i] = INFINITY


@inlined
def _draw_row(
    patterns: Array,
    n: np.int32,
    offset: np.float32,
    first: np.float32,
    last: np.float32,
    w: Eight,
    wx: Eight,
    lines: Array,
) -> None:
    for i in range(WIDTH):
        p = np.int32(patterns[i])
        ones, twos = _sums_by_level(p, w)
        a = np.float32(ones + THREE * twos) if np.int32(i) < n else INFINITY
        ones, twos = _sums_by_level(p, wx)
        b = np.float32(np.float32(ones + TWO * twos) - offset)
        lines[A + i] = a
        lines[B + i] = b
        lines[AT_FIRST + i] = TWO * first * a - b
        lines[AT_LAST + i] = TWO * last * a - b


@inlined
def _eight(values: Array) -> Eight:
    """Eight values as scalars, which a loop over lanes keeps in registers."""
    return (
        *(values[0], values[1], values[2], values[3]),
        *(values[4], values[5], values[6], values[7]),
    )


@inlined
def _sums_by_level(pattern: np.int32, values: Eight) -> tuple[np.float32, np.float32]:
    """The sum of the values of level 1, and of level 2; LLVM would not unroll a loop over a tuple."""
    ones = _add_if(_add_if(ZERO, pattern, 1 << 0, values[0]), pattern, 1 << 2, values[1])
    ones = _add_if(_add_if(ones, pattern, 1 << 4, values[2]), pattern, 1 << 6, values[3])
    ones = _add_if(_add_if(ones, pattern, 1 << 8, values[4]), pattern, 1 << 10, values[5])
    ones = _add_if(_add_if(ones, pattern, 1 << 12, values[6]), pattern, 1 << 14, values[7])
    twos = _add_if(_add_if(ZERO, pattern, 2 << 0, values[0]), pattern, 2 << 2, values[1])
    twos = _add_if(_add_if(twos, pattern, 2 << 4, values[2]), pattern, 2 << 6, values[3])
    twos = _add_if(_add_if(twos, pattern, 2 << 8, values[4]), pattern, 2 << 10, values[5])
    twos = _add_if(_add_if(twos, pattern, 2 << 12, values[6]), pattern, 2 << 14, values[7])
    return ones, twos


@inlined
def _add_if(total: np.float32, pattern: np.int32, bit: int, value: np.float32) -> np.float32:
    more = np.float32(total + value)
    return more if np.int32(pattern & np.int32(bit)) != np.int32(0) else total


@leaf
def _evaluate(scale: np.float32, n_chunks: int, lines: Array) -> None:
    """What the lines come to at another scale."""
    for c in range(n_chunks):
        chunk = lines[c * 4 * CHUNK : (c + 1) * 4 * CHUNK]
        for i in range(CHUNK):
            chunk[AT_FIRST + i] = TWO * scale * chunk[A + i] - chunk[B + i]


@inlined_leaf
def _winner(at: int, n_chunks: int, tolerance: np.float32, lines: Array, bits: Array) -> int:
    """The place of the least value in a row of lines if all others are larger by more than the tolerance, else -1."""
    least = np.int32(0x7FFFFFFF)
    for c in range(n_chunks):
        start = c * 4 * CHUNK + at
        least = _least(least, bits[start : start + CHUNK])
    limit = np.int32(least).view(np.float32) + tolerance
    close = np.int32(0)
    for c in range(n_chunks):
        start = c * 4 * CHUNK + at
        close = _add_close(close, np.int32(c * CHUNK), limit, lines[start : start + CHUNK])
    return int(close & 0xFFFF) if close >> 16 == 1 else -1


@inlined_leaf
def _least(least: np.int32, bits: Array) -> np.int32:
    """As integers, of which LLVM finds the least side by side; positive floats have the same order.

    The least of several floats that are negative, by rounding, would be the wrong one: but then several are close.
    """
    for i in range(
        len(bits)
    ):  # LLVM would unroll a loop of constant length before it looks for a vector loop
        least = bits[i] if bits[i] < least else least
    return least


@inlined_leaf
def _add_close(close: np.int32, j: np.int32, limit: np.float32, values: Array) -> np.int32:
    for i in range(CHUNK):
        one = np.int32(np.int32(ONE_CLOSE + j) + np.int32(i))
        close = np.int32(close + (one if values[i] <= limit else np.int32(0)))
    return close


@inlined_leaf
def _count_between(limits: tuple[np.float32, np.float32], n_chunks: int, lines: Array) -> int:
    """How many neighbours come to no more than the limits at both scales."""
    count = np.int32(0)
    for c in range(n_chunks):
        count = _add_between(count, limits[0], limits[1], lines[c * 4 * CHUNK : (c + 1) * 4 * CHUNK])
    return int(count)


@inlined_leaf
def _add_between(count: np.int32, at_first: np.float32, at_last: np.float32, lines: Array) -> np.int32:
    for i in range(CHUNK):
        is_between = (lines[AT_FIRST + i] <= at_first) & (lines[AT_LAST + i] <= at_last)
        count = np.int32(count + (np.int32(1) if is_between else np.int32(0)))
    return count


@leaf
def _exact(scale: np.float32, n: int, patterns: Array, cell: Array) -> int:
    """The place of the first neighbour with the least error, summed as ggml does; 0 where it aborts: all overflow."""
    least, place = LARGEST, 0
    for j in range(n):
        error = np.float32(0)
        for k in range(GROUP):
            q = np.float32(2 * (patterns[j] >> 2 * k & 3) + 1)
            diff = scale * q - cell[X + k]
            error += cell[ROOT + k] * diff * diff
        if error < least:
            least, place = error, j
    return place
