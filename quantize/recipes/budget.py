"""One type for each tensor under a budget of bytes: the least total cost that whole tensors allow.

A multiple-choice knapsack. Steps along the convex hulls of all tensors, the steepest first, are its Lagrangian solution
up to the step that no longer fits; what they leave of the budget is then filled, and exchanges of two tensors' types
follow. With hundreds of tensors that comes next to the best that there is, at no time worth speaking of.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from quantize.exceptions import RecipeError
from quantize.tensors import QType

__all__ = ["TypeOption", "choose_types"]

F64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class TypeOption:
    """A type that a tensor could have: the bytes that it then takes, and what that costs in any unit."""

    qtype: QType
    n_bytes: int
    cost: float


def choose_types(options: Mapping[str, Sequence[TypeOption]], budget: int) -> dict[str, QType]:
    """The type of each tensor, so that all together take at most `budget` bytes and cost as little as can be found.

    A type that costs no less than a smaller one is never chosen, so measured costs may be noisy. The same options in
    the same order give the same types.

    Args:
        options: of each tensor by name, at least one, in any order.
        budget: bytes.

    Raises:
        RecipeError: the smallest types together do not fit into the budget.
    """
    worthwhile = [_worthwhile(choices) for choices in options.values()]
    least = sum(choices[0].n_bytes for choices in worthwhile)
    if least > budget:
        raise RecipeError(
            "",
            f"the smallest types take {least:,} bytes together, the budget is {budget:,}",
            f"allow {least:,} bytes or more, or smaller types",
        )
    chosen = [0] * len(worthwhile)  # for each tensor the index of its type
    left = _climb(worthwhile, chosen, budget - least)
    left = _fill(worthwhile, chosen, left)
    _exchange(worthwhile, chosen, left)
    return {
        name: choices[index].qtype for name, choices, index in zip(options, worthwhile, chosen, strict=True)
    }


def _worthwhile(options: Sequence[TypeOption]) -> list[TypeOption]:
    """The options by bytes ascending, of which each costs less than all that are smaller."""
    kept: list[TypeOption] = []
    for option in sorted(options, key=lambda option: (option.n_bytes, option.cost)):
        if not kept or option.cost < kept[-1].cost:
            kept.append(option)
    return kept


def _hull(options: Sequence[TypeOption]) -> list[int]:
    """The indices of the options on the lower convex hull of cost over bytes."""
    hull: list[int] = []
    for index, option in enumerate(options):
        while len(hull) > 1:
            first, middle = options[hull[-2]], options[hull[-1]]
            if _gain(first, middle) > _gain(middle, option):
                break
            hull.pop()
        hull.append(index)
    return hull


def _gain(smaller: TypeOption, larger: TypeOption) -> float:
    """The cost that each byte more saves."""
    return (smaller.cost - larger.cost) / (larger.n_bytes - smaller.n_bytes)


def _climb(worthwhile: Sequence[Sequence[TypeOption]], chosen: list[int], left: int) -> int:
    """Take the steps of all hulls, the steepest first, until one does not fit; returns the bytes that are left."""
    steps = []
    for tensor, options in enumerate(worthwhile):
        hull = _hull(options)
        for start, end in pairwise(hull):
            steps.append((-_gain(options[start], options[end]), tensor, end))
    for _, tensor, end in sorted(steps):
        options = worthwhile[tensor]
        more = options[end].n_bytes - options[chosen[tensor]].n_bytes
        if more > left:
            break
        chosen[tensor] = end
        left -= more
    return left


def _fill(worthwhile: Sequence[Sequence[TypeOption]], chosen: list[int], left: int) -> int:
    """Take larger types that fit, by gain per byte, until none fits; returns the bytes that are left."""
    while True:
        best: tuple[float, int, int] | None = None
        for tensor, options in enumerate(worthwhile):
            now = options[chosen[tensor]]
            for index in range(chosen[tensor] + 1, len(options)):
                if options[index].n_bytes - now.n_bytes <= left:
                    found = (-_gain(now, options[index]), tensor, index)
                    best = found if best is None else min(best, found)
        if best is None:
            return left
        _, tensor, index = best
        left -= worthwhile[tensor][index].n_bytes - worthwhile[tensor][chosen[tensor]].n_bytes
        chosen[tensor] = index


def _exchange(worthwhile: Sequence[Sequence[TypeOption]], chosen: list[int], left: int) -> None:
    """Change the types of two tensors at once (or of one) as long as that lowers the total, the best change first."""
    places = [(tensor, index) for tensor, options in enumerate(worthwhile) for index in range(len(options))]
    tensors = np.array([tensor for tensor, _ in places], np.int64)
    n_bytes = np.array([worthwhile[tensor][index].n_bytes for tensor, index in places], np.int64)
    costs = np.array([worthwhile[tensor][index].cost for tensor, index in places], np.float64)
    first = np.searchsorted(tensors, np.arange(len(worthwhile)))  # of each tensor's options
    total = sum(float(costs[first[tensor] + index]) for tensor, index in enumerate(chosen))
    while True:
        now = first + np.array(chosen, np.int64)
        more_bytes, more_cost = n_bytes - n_bytes[now][tensors], costs - costs[now][tensors]
        found = _best_pair(tensors, more_bytes, more_cost, left)
        if found is None or not more_cost[list(found)].sum() < -1e-12 * abs(total):  # rounding is no gain
            return
        for move in found:
            tensor, index = places[move]
            chosen[tensor] = index
            left -= int(more_bytes[move])
            total += float(more_cost[move])


def _best_pair(
    tensors: npt.NDArray[np.int64], more_bytes: npt.NDArray[np.int64], more_cost: F64, left: int
) -> tuple[int, int] | None:
    """The two moves, of two tensors, that save most within the bytes that are left; a move may change nothing.

    Moves are sorted by bytes: the best partner of a move is the cheapest of those up to some size, or the cheapest of
    another tensor than that one's.
    """
    order = np.argsort(more_bytes, kind="stable")
    sizes, costs, owners = more_bytes[order], more_cost[order], tensors[order]
    cheapest, second = _running_best(costs, owners)
    room = np.searchsorted(sizes, left - more_bytes, side="right") - 1  # the last partner that fits, by move
    moves = np.flatnonzero(room >= 0)
    partner = cheapest[room[moves]]
    partner = np.where(owners[partner] == tensors[moves], second[room[moves]], partner)
    moves, partner = moves[partner >= 0], partner[partner >= 0]
    if not moves.size:
        return None
    best = int(np.argmin(more_cost[moves] + costs[partner]))
    return int(moves[best]), int(order[partner[best]])


def _running_best(
    costs: F64, owners: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Up to each place, the place of the least cost, and that of the least cost of any other owner (-1: none)."""
    cheapest, second = np.empty(len(costs), np.int64), np.empty(len(costs), np.int64)
    one = other = -1
    for place, (cost, owner) in enumerate(zip(costs.tolist(), owners.tolist(), strict=True)):
        if one < 0 or cost < costs[one]:
            if one >= 0 and owners[one] != owner:
                other = one
            one = place
        elif owner != owners[one] and (other < 0 or cost < costs[other]):
            other = place
        cheapest[place], second[place] = one, other
    return cheapest, second
