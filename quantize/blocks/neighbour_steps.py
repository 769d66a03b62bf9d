"""Neighbours of a pattern that are a *step* away: one weight a level up or down. What `neighbours` tries first.

For all lanes side by side the errors of the 16 steps are computed, less that of the pattern itself, and divided by four
scales: weight * (scale + e) for a step up, weight * (scale - e) for one down, e = scale * q - x. The least of the
steps that lead to an entry is the best of a list that is only such steps, if it is ahead of the second by more than
rounding errors. Where a list goes on with neighbours that are several steps away, those that contain a step to an entry
are worse than that if every step makes the error greater; the others cost at least as much as the two cheapest of the
steps that lead to no entry. Where that does not decide, `neighbours` searches the list.
"""

from __future__ import annotations

import numpy as np

from quantize.blocks.codebook import Codebook
from quantize.blocks.jit import inlined, inlined_leaf, leaf
from quantize.blocks.lanes import ZERO
from quantize.blocks.neighbour_lines import GROUP, INFINITY, TWO
from quantize.blocks.tiles import LANES
from quantize.tensors import Array

STEPS, TOLERATED, SNAPPED, TODO, UNSURE, EDGES = (r * LANES for r in range(6))
"""Rows of the state of a group, int32: the steps of each lane's pattern at a scale, the bits of the float32 by which a
step must be ahead, the pattern after the step; and for all scales, a bit for each: where the list must be searched,
where a step costs nearly nothing, and where the pattern is not that at the scale before."""
N_STATE = 6
ALL = np.int32(-1)

Ahead = tuple[np.float32, np.float32, np.int32]
Now = tuple[np.float32, np.float32, np.int32, np.float32, np.float32]


def steps_of(book: Codebook) -> Array:
    """The steps of each pattern, int32 [1 << 16].

    Bit k is set where weight k can go up a level and that is an entry, 8 + k where it can go down; 16 + k and 24 + k
    where it can, but that is none. All bits are set for entries, none where a list that begins with steps goes on with
    neighbours that have a weight two levels away.
    """
    off = np.flatnonzero(book.index < 0)
    levels = off[:, None] >> 2 * np.arange(GROUP) & 3
    steps = np.zeros(len(off), np.uint32)
    for k in range(GROUP):
        for move, first in ((1, k), (-1, 8 + k)):
            to = levels[:, k] + move
            can = (to >= 0) & (to <= 2)
            is_entry = book.index[np.where(can, off + (move << 2 * k), off)] >= 0
            steps |= np.where(can, np.uint32(1) << np.where(is_entry, first, 16 + first).astype(np.uint32), 0)
    numbers = -1 - book.index[off]
    counts = np.diff(book.starts)
    by_list = np.empty((len(counts), GROUP), np.int8)
    by_list[numbers] = levels
    far = (
        abs(book.levels[book.neighbours].astype(np.int8) - np.repeat(by_list, counts, axis=0)).max(axis=1) > 1
    )
    is_far = np.bincount(np.repeat(np.arange(len(counts)), counts), far)[numbers] > 0
    steps[is_far] = 0
    table = np.full(1 << 16, ALL)
    table[off] = steps.view(np.int32)
    return table


@leaf
def prepare_steps(
    scales: Array, x: Array, root: Array, tolerance: np.float32, tiniest: np.float32, state: Array
) -> None:
    """Prepare the state of a group for scales [n_scales, LANES], which become smaller from one to the next."""
    _tolerate(scales[0], scales[len(scales) - 1], x, root, tolerance, tiniest, state)
    for i in range(LANES):
        state[TODO + i] = np.int32(0)
        state[UNSURE + i] = np.int32(0)
        state[EDGES + i] = np.int32(0)


@inlined_leaf
def _tolerate(
    high: Array, low: Array, x: Array, root: Array, tolerance: np.float32, tiniest: np.float32, state: Array
) -> None:
    for i in range(LANES):
        total = ZERO
        for k in range(GROUP):
            reach = np.float32(5) * high[i] + abs(x[k * LANES + i])
            total += root[k * LANES + i] * reach * reach
        ahead = tolerance * total / (np.float32(4) * low[i])
        ahead = ahead if (total > tiniest) & (low[i] > ZERO) else INFINITY
        state[TOLERATED + i] = np.float32(ahead).view(np.int32)


@leaf
def look_up_steps(patterns: Array, steps: Array, state: Array) -> None:
    """The steps of a scale's patterns, from a table of pairs of which they are the first."""
    for i in range(LANES):
        state[STEPS + i] = steps[np.uint64(2 * np.int64(patterns[i]))]


@leaf
def step_only(bit: np.int32, patterns: Array, scales: Array, x: Array, root: Array, state: Array) -> None:
    """Take the best steps at a scale, where lists consist of nothing else, or of none."""
    for i in range(LANES):
        pattern, steps = np.int32(patterns[i]), np.int32(state[STEPS + i])
        ahead: Ahead = (INFINITY, INFINITY, np.int32(0))
        for k in range(GROUP):
            up, down = _costs(k, pattern, scales[i], x[k * LANES + i], root[k * LANES + i])
            ahead = _to_entries(k, up, down, steps, ahead)
        least, second, step = ahead
        is_settled = second - least > np.int32(state[TOLERATED + i]).view(np.float32)
        _note(i, bit, pattern, steps, step, is_settled, False, state)


@leaf
def step_first(bit: np.int32, patterns: Array, scales: Array, x: Array, root: Array, state: Array) -> None:
    """Take the best steps at a scale, where lists go on with neighbours that are several steps away."""
    for i in range(LANES):
        scale, pattern, steps = scales[i], np.int32(patterns[i]), np.int32(state[STEPS + i])
        now: Now = (INFINITY, INFINITY, np.int32(0), INFINITY, INFINITY)
        # LLVM would not unroll a loop as long as this
        now = _step_first(0, scale, pattern, steps, x[0 * LANES + i], root[0 * LANES + i], now)
        now = _step_first(1, scale, pattern, steps, x[1 * LANES + i], root[1 * LANES + i], now)
        now = _step_first(2, scale, pattern, steps, x[2 * LANES + i], root[2 * LANES + i], now)
        now = _step_first(3, scale, pattern, steps, x[3 * LANES + i], root[3 * LANES + i], now)
        now = _step_first(4, scale, pattern, steps, x[4 * LANES + i], root[4 * LANES + i], now)
        now = _step_first(5, scale, pattern, steps, x[5 * LANES + i], root[5 * LANES + i], now)
        now = _step_first(6, scale, pattern, steps, x[6 * LANES + i], root[6 * LANES + i], now)
        now = _step_first(7, scale, pattern, steps, x[7 * LANES + i], root[7 * LANES + i], now)
        least, second, step, lowest, next_ = now
        tolerance = np.int32(state[TOLERATED + i]).view(np.float32)
        both = lowest + next_
        second = both if both < second else second
        lowest = least if least < lowest else lowest
        is_settled = (second - least > tolerance) & (lowest > tolerance)
        _note(i, bit, pattern, steps, step, is_settled, not lowest > tolerance, state)


@inlined
def _step_first(
    k: int, scale: np.float32, pattern: np.int32, steps: np.int32, x: np.float32, weight: np.float32, now: Now
) -> Now:
    least, second, step, lowest, next_ = now
    up, down = _costs(k, pattern, scale, x, weight)
    least, second, step = _to_entries(k, up, down, steps, (least, second, step))
    lowest, next_ = _least(up, steps, np.int32(1 << 16 + k), lowest, next_)
    lowest, next_ = _least(down, steps, np.uint32(1 << 24 + k).view(np.int32), lowest, next_)
    return least, second, step, lowest, next_


@inlined
def _costs(
    k: int, pattern: np.int32, scale: np.float32, x: np.float32, weight: np.float32
) -> tuple[np.float32, np.float32]:
    """What a step of weight k costs, up and down; both together are 2 * scale * weight."""
    level = np.float32(np.int32(np.int32(pattern >> np.int32(2 * k)) & np.int32(3)))
    both = TWO * scale * weight
    up = both * level + (both - weight * x)
    return up, both - up


@inlined
def _to_entries(k: int, up: np.float32, down: np.float32, steps: np.int32, ahead: Ahead) -> Ahead:
    """The steps of weight k as far as they lead to entries."""
    least, second, taken = ahead
    before = least
    least, second = _least(up, steps, np.int32(1 << k), least, second)
    taken = np.int32(1 << 2 * k) if least < before else taken
    before = least
    least, second = _least(down, steps, np.int32(256 << k), least, second)
    taken = np.int32(-(1 << 2 * k)) if least < before else taken
    return least, second, taken


@inlined
def _least(
    cost: np.float32, steps: np.int32, bit: np.int32, least: np.float32, second: np.float32
) -> tuple[np.float32, np.float32]:
    value = cost if np.int32(steps & bit) != np.int32(0) else INFINITY
    larger = value if least < value else least
    least = value if value < least else least
    return least, larger if larger < second else second


@inlined
def _note(
    i: int,
    bit: np.int32,
    pattern: np.int32,
    steps: np.int32,
    step: np.int32,
    is_settled: bool | np.bool_,
    is_unsure: bool | np.bool_,
    state: Array,
) -> None:
    is_entry = steps == ALL
    state[SNAPPED + i] = pattern + (step if is_settled & (not is_entry) else np.int32(0))
    state[TODO + i] |= np.int32(0) if is_settled | is_entry else bit
    state[UNSURE + i] |= bit if is_unsure else np.int32(0)


@inlined_leaf
def mark_edges(bit: np.int32, patterns: Array, before: Array, state: Array) -> None:
    """Where a scale's patterns are not those at the scale before."""
    for i in range(LANES):
        state[EDGES + i] |= bit if patterns[i] != before[i] else np.int32(0)


@inlined_leaf
def take_steps(state: Array, snapped: Array) -> None:
    """The patterns after the steps."""
    for i in range(LANES):
        snapped[i] = np.uint16(state[SNAPPED + i])
