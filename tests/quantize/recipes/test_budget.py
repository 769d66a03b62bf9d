"""The choice of types under a budget, against all choices that there are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product

import numpy as np
import pytest

from quantize.exceptions import RecipeError
from quantize.recipes.budget import TypeOption, choose_types
from quantize.tensors import QType

TYPES = (QType.Q2_K, QType.Q3_K, QType.Q4_K, QType.Q5_K, QType.Q6_K, QType.Q8_0)
SIZES = (84, 110, 144, 176, 210, 272)

Options = Mapping[str, Sequence[TypeOption]]


def random_options(rng: np.random.Generator, n_tensor: int, *, noise: float = 0.2) -> Options:
    """Tensors of several sizes, whose costs fall with the bytes, or nearly."""
    options = {}
    for tensor in range(n_tensor):
        n_block, level = int(rng.integers(1, 40)), float(rng.lognormal(0, 2))
        costs = level * 4.0 ** -np.arange(len(TYPES)) * rng.lognormal(0, noise, len(TYPES))
        options[f"tensor {tensor}"] = [
            TypeOption(qtype, n_block * size, float(cost))
            for qtype, size, cost in zip(TYPES, SIZES, costs, strict=True)
        ]
    return options


def totals(options: Options, chosen: Mapping[str, QType]) -> tuple[int, float]:
    """The bytes and the cost of a choice."""
    picked = [next(o for o in options[name] if o.qtype is qtype) for name, qtype in chosen.items()]
    assert list(chosen) == list(options)
    return sum(o.n_bytes for o in picked), sum(o.cost for o in picked)


def span(options: Options) -> tuple[int, int]:
    """The bytes of the smallest and of the largest types."""
    return (
        sum(min(o.n_bytes for o in choices) for choices in options.values()),
        sum(max(o.n_bytes for o in choices) for choices in options.values()),
    )


def least_cost(options: Options, budget: int) -> float:
    """The cost of the best of all choices."""
    return min(
        sum(o.cost for o in picked)
        for picked in product(*options.values())
        if sum(o.n_bytes for o in picked) <= budget
    )


@pytest.mark.parametrize("seed", range(20))
def test_next_to_no_choice_is_better(seed: int) -> None:
    rng = np.random.default_rng(seed)
    options = random_options(rng, 5, noise=0.5 if seed % 2 else 0.2)
    low, high = span(options)
    budget = int(rng.integers(low, high))
    n_bytes, cost = totals(options, choose_types(options, budget))
    best = least_cost(options, budget)
    assert n_bytes <= budget
    assert best <= cost * (1 + 1e-9) and cost <= 1.25 * best


def test_the_budget_of_a_solution_on_the_hulls_gives_that_solution() -> None:
    options = random_options(np.random.default_rng(3), 6, noise=0.0)
    for price in (1e-5, 1e-4, 1e-3, 1e-2):
        picked = [min(choices, key=lambda o: o.cost + price * o.n_bytes) for choices in options.values()]
        budget = sum(o.n_bytes for o in picked)
        assert list(choose_types(options, budget).values()) == [o.qtype for o in picked]


@pytest.mark.parametrize("seed", range(5))
def test_many_tensors_keep_the_budget_and_come_near_the_bound(seed: int) -> None:
    rng = np.random.default_rng(seed)
    options = random_options(rng, 300)
    low, high = span(options)
    budget = (2 * low + high) // 3
    chosen = choose_types(options, budget)
    n_bytes, cost = totals(options, chosen)
    assert budget - 84 <= n_bytes <= budget
    bound = max(  # Lagrange: for any price no choice within the budget costs less
        sum(min(o.cost + price * o.n_bytes for o in choices) for choices in options.values()) - price * budget
        for price in np.geomspace(1e-7, 1e-1, 400)
    )
    assert bound <= cost <= 1.005 * bound
    assert chosen == choose_types(dict(options), budget)


def test_a_larger_type_that_costs_more_is_never_chosen() -> None:
    options = {
        "noisy": [TypeOption(QType.Q5_K, 20, 2.0), TypeOption(QType.Q4_K, 10, 1.0)],
        "other": [TypeOption(QType.Q4_K, 10, 1.0), TypeOption(QType.Q6_K, 30, 0.5)],
    }
    assert choose_types(options, 1000) == {"noisy": QType.Q4_K, "other": QType.Q6_K}
    assert choose_types(options, 20) == {"noisy": QType.Q4_K, "other": QType.Q4_K}


def test_costs_of_nothing_keep_the_smallest_type() -> None:
    options = {"unreached": [TypeOption(QType.Q8_0, 34, 0.0), TypeOption(QType.Q4_K, 18, 0.0)]}
    assert choose_types(options, 100) == {"unreached": QType.Q4_K}


def test_a_budget_below_the_smallest_types_is_refused() -> None:
    options = random_options(np.random.default_rng(0), 3)
    low, _ = span(options)
    choose_types(options, low)
    with pytest.raises(
        RecipeError, match=f"the smallest types take {low:,} bytes together, the budget is {low - 1:,}"
    ):
        choose_types(options, low - 1)
    assert choose_types({}, 0) == {}
