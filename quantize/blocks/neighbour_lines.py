"""The errors of a codebook's neighbours as lines over the scale, and who is best where: see `neighbours`.

What is common to all neighbours is left out, the rest divided by 4: A of a line is a half of that in `neighbours`.
"""

from __future__ import annotations

import numpy as np

from quantize.blocks.jit import inlined, inlined_leaf, leaf
from quantize.blocks.lanes import ZERO
from quantize.tensors import Array

GROUP = 8
WIDTH = 16  # neighbours, or scales, side by side
BLOCK = 8  # neighbours that meet one after the other
LARGEST = np.float32(3.4028234663852886e38)  # FLT_MAX
INFINITY = np.float32(np.inf)
TWO, THREE = np.float32(2), np.float32(3)

X, ROOT, WX = (r * GROUP for r in range(3))
"""Rows of a cell: x, the weights of the errors, and their products."""
LEAST, SECOND, WINNER, TWICE = (r * WIDTH for r in range(4))
"""Rows of a contest, by scale."""

Eight = tuple[np.float32, np.float32, np.float32, np.float32, np.float32, np.float32, np.float32, np.float32]


@inlined_leaf
def draw(patterns: Array, start: int, n: int, cell: Array, lines: Array) -> None:
    """The lines of n patterns from `start` on: WIDTH times A, WIDTH times B, and so on.

    The last row is filled up with what follows there; such lines are never best.
    """
    w, wx = eight(cell, ROOT), eight(cell, WX)
    for j in range(0, n, WIDTH):
        _draw_row(patterns, start + j, np.int32(n - j), w, wx, 2 * j, lines)


@inlined_leaf
def _draw_row(patterns: Array, start: int, n: np.int32, w: Eight, wx: Eight, to: int, lines: Array) -> None:
    for i in range(WIDTH):
        p = np.int32(patterns[np.uint64(start + i)])
        ones, twos = _sums_by_level(p, w)
        a = np.float32(ones + THREE * twos)
        ones, twos = _sums_by_level(p, wx)
        lines[np.uint64(to + i)] = a if np.int32(i) < n else INFINITY
        lines[np.uint64(to + WIDTH + i)] = np.float32(ones + TWO * twos)


@inlined
def eight(values: Array, start: int) -> Eight:
    """Eight values as scalars, which a loop over lanes keeps in registers."""
    return (
        *(values[np.uint64(start)], values[np.uint64(start + 1)]),
        *(values[np.uint64(start + 2)], values[np.uint64(start + 3)]),
        *(values[np.uint64(start + 4)], values[np.uint64(start + 5)]),
        *(values[np.uint64(start + 6)], values[np.uint64(start + 7)]),
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
def compete(n: int, lines: Array, contest: Array) -> None:
    """Who of the first n lines is LEAST at each of WIDTH scales, of which TWICE is given; what the SECOND comes to."""
    for i in range(3 * WIDTH):
        contest[i] = INFINITY
    for j in range(0, n, BLOCK):
        _meet(np.float32(j), 2 * j - j % WIDTH, lines, contest)


@inlined_leaf
def _meet(first: np.float32, at: int, lines: Array, contest: Array) -> None:
    a, b = eight(lines, at), eight(lines, at + WIDTH)
    for i in range(WIDTH):
        twice, before = contest[TWICE + i], contest[WINNER + i]
        now = contest[LEAST + i], contest[SECOND + i], np.float32(-1)
        now = _challenge(twice * a[0] - b[0], np.float32(0), now)
        now = _challenge(twice * a[1] - b[1], np.float32(1), now)
        now = _challenge(twice * a[2] - b[2], np.float32(2), now)
        now = _challenge(twice * a[3] - b[3], np.float32(3), now)
        now = _challenge(twice * a[4] - b[4], np.float32(4), now)
        now = _challenge(twice * a[5] - b[5], np.float32(5), now)
        now = _challenge(twice * a[6] - b[6], np.float32(6), now)
        now = _challenge(twice * a[7] - b[7], np.float32(7), now)
        contest[LEAST + i] = now[0]
        contest[SECOND + i] = now[1]
        contest[WINNER + i] = before if now[2] < ZERO else now[2] + first


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


@leaf
def exact(scale: np.float32, start: int, n: int, patterns: Array, cell: Array, errors: Array) -> int:
    """The place of the first neighbour with the least error, summed as ggml does; 0 where it aborts: all overflow.

    `errors` [n, filled up to a multiple of WIDTH] is scratch.
    """
    x, w = eight(cell, X), eight(cell, ROOT)
    for j in range(0, n, WIDTH):
        _errors(scale, start + j, x, w, j, patterns, errors)
    least, place = LARGEST, 0
    for j in range(n):
        error = errors[j]
        place = j if error < least else place
        least = error if error < least else least
    return place


@inlined_leaf
def _errors(
    scale: np.float32, start: int, x: Eight, w: Eight, to: int, patterns: Array, errors: Array
) -> None:
    for i in range(WIDTH):
        p = np.int32(patterns[np.uint64(start + i)])
        error = ZERO + _term(0, scale, p, x[0], w[0])
        error += _term(1, scale, p, x[1], w[1])
        error += _term(2, scale, p, x[2], w[2])
        error += _term(3, scale, p, x[3], w[3])
        error += _term(4, scale, p, x[4], w[4])
        error += _term(5, scale, p, x[5], w[5])
        error += _term(6, scale, p, x[6], w[6])
        error += _term(7, scale, p, x[7], w[7])
        errors[np.uint64(to + i)] = error


@inlined
def _term(k: int, scale: np.float32, pattern: np.int32, x: np.float32, weight: np.float32) -> np.float32:
    level = np.int32(np.int32(pattern >> np.int32(2 * k)) & np.int32(3))
    diff = scale * np.float32(np.int32(level + level) + np.int32(1)) - x
    return weight * diff * diff
