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
LARGEST = np.float32(3.4028234663852886e38)  # FLT_MAX
INFINITY = np.float32(np.inf)
TWO, THREE = np.float32(2), np.float32(3)

X, ROOT, WX = (r * GROUP for r in range(3))
"""Rows of a cell: x, the weights of the errors, and their products."""
LEAST, SECOND, WINNER, TWICE = (r * WIDTH for r in range(4))
"""Rows of a contest, by scale."""

Eight = tuple[np.float32, np.float32, np.float32, np.float32, np.float32, np.float32, np.float32, np.float32]


@inlined_leaf
def draw(patterns: Array, start: int, n: np.int32, w: Eight, wx: Eight, lines: Array) -> None:
    """The lines of WIDTH patterns from `start` on, A and B; those from n on are never best."""
    for i in range(WIDTH):
        p = np.int32(patterns[np.uint64(start + i)])
        ones, twos = _sums_by_level(p, w)
        a = np.float32(ones + THREE * twos)
        ones, twos = _sums_by_level(p, wx)
        lines[i] = a if np.int32(i) < n else INFINITY
        lines[WIDTH + i] = np.float32(ones + TWO * twos)


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
def compete(first: np.float32, lines: Array, contest: Array) -> None:
    """Who of WIDTH lines, from number `first` on, and those before is LEAST at each scale, what the SECOND comes to.

    TWICE of the contest is given.
    """
    a0, a1, b0, b1 = eight(lines, 0), eight(lines, 8), eight(lines, WIDTH), eight(lines, WIDTH + 8)
    for i in range(WIDTH):
        twice = contest[TWICE + i]
        now = contest[LEAST + i], contest[SECOND + i], contest[WINNER + i]
        now = _challenge(twice * a0[0] - b0[0], first + np.float32(0), now)
        now = _challenge(twice * a0[1] - b0[1], first + np.float32(1), now)
        now = _challenge(twice * a0[2] - b0[2], first + np.float32(2), now)
        now = _challenge(twice * a0[3] - b0[3], first + np.float32(3), now)
        now = _challenge(twice * a0[4] - b0[4], first + np.float32(4), now)
        now = _challenge(twice * a0[5] - b0[5], first + np.float32(5), now)
        now = _challenge(twice * a0[6] - b0[6], first + np.float32(6), now)
        now = _challenge(twice * a0[7] - b0[7], first + np.float32(7), now)
        now = _challenge(twice * a1[0] - b1[0], first + np.float32(8), now)
        now = _challenge(twice * a1[1] - b1[1], first + np.float32(9), now)
        now = _challenge(twice * a1[2] - b1[2], first + np.float32(10), now)
        now = _challenge(twice * a1[3] - b1[3], first + np.float32(11), now)
        now = _challenge(twice * a1[4] - b1[4], first + np.float32(12), now)
        now = _challenge(twice * a1[5] - b1[5], first + np.float32(13), now)
        now = _challenge(twice * a1[6] - b1[6], first + np.float32(14), now)
        now = _challenge(twice * a1[7] - b1[7], first + np.float32(15), now)
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
