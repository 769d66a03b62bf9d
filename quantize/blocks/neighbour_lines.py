"""The errors of a codebook's neighbours as lines over the scale, and who is best where: see `neighbours`.

The neighbours of a pattern lie side by side: what is common to all of them is left out, the rest divided by 4.
"""

from __future__ import annotations

import numpy as np

from quantize.blocks.jit import inlined, inlined_leaf, leaf
from quantize.blocks.lanes import ZERO
from quantize.tensors import Array

GROUP = 8
WIDTH = 16  # neighbours, or scales, side by side
CHUNK = 64  # neighbours of which the best is found together
BLOCK = 8  # neighbours that meet one after the other
LARGEST = np.float32(3.4028234663852886e38)  # FLT_MAX
INFINITY = np.float32(np.inf)
TWO, THREE = np.float32(2), np.float32(3)
ONE_CLOSE = np.int32(1 << 16)  # counts in the upper half, sums of places in the lower

A, B, AT_FIRST, AT_LAST = (r * CHUNK for r in range(4))
"""Rows of the lines of a chunk: A and B, and what they come to at two scales."""
X, ROOT, WX = (r * GROUP for r in range(3))
"""Rows of a cell: x, the weights of the errors, and their products."""
LEAST, SECOND, WINNER = (r * WIDTH for r in range(3))
"""Rows of a contest, by scale."""

Eight = tuple[np.float32, np.float32, np.float32, np.float32, np.float32, np.float32, np.float32, np.float32]


@inlined_leaf
def draw(
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


@inlined_leaf
def compete(scales: Array, n: int, lines: Array, contest: Array) -> None:
    """Who of the first n lines is LEAST at each of WIDTH scales, and what the SECOND comes to."""
    for i in range(3 * WIDTH):
        contest[i] = INFINITY
    for j in range(0, n, BLOCK):
        at = place(j)
        _meet(np.float32(j), scales, lines[at : at + BLOCK], lines[at + B : at + B + BLOCK], contest)


@inlined_leaf
def _meet(first: np.float32, scales: Array, a: Array, b: Array, contest: Array) -> None:
    a0, b0 = _eight(a), _eight(b)
    for i in range(WIDTH):
        twice = TWO * scales[i]
        now = contest[LEAST + i], contest[SECOND + i], contest[WINNER + i]
        now = _challenge(twice * a0[0] - b0[0], first, now)
        now = _challenge(twice * a0[1] - b0[1], first + np.float32(1), now)
        now = _challenge(twice * a0[2] - b0[2], first + np.float32(2), now)
        now = _challenge(twice * a0[3] - b0[3], first + np.float32(3), now)
        now = _challenge(twice * a0[4] - b0[4], first + np.float32(4), now)
        now = _challenge(twice * a0[5] - b0[5], first + np.float32(5), now)
        now = _challenge(twice * a0[6] - b0[6], first + np.float32(6), now)
        now = _challenge(twice * a0[7] - b0[7], first + np.float32(7), now)
        contest[LEAST + i] = now[0]
        contest[SECOND + i] = now[1]
        contest[WINNER + i] = now[2]


@inlined
def _challenge(
    value: np.float32, number: np.float32, now: tuple[np.float32, np.float32, np.float32]
) -> tuple[np.float32, np.float32, np.float32]:
    least, second, winner = now
    winner = number if value < least else winner
    larger = value if least < value else least
    least = value if value < least else least
    second = larger if larger < second else second
    return least, second, winner


@inlined_leaf
def winner(at: int, n_chunks: int, tolerance: np.float32, lines: Array, bits: Array) -> int:
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
def count_between(limits: tuple[np.float32, np.float32], n_chunks: int, lines: Array) -> int:
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


@inlined
def place(number: int) -> int:
    """Where the lines of a neighbour begin."""
    return number // CHUNK * 4 * CHUNK + number % CHUNK


@leaf
def exact(scale: np.float32, n: int, patterns: Array, cell: Array) -> int:
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
