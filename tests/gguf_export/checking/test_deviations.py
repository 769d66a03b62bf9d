"""Deviations of slabs add up to that of their matrix in any order; damage is told from the work of another encoder."""

from __future__ import annotations

import random
from functools import reduce
from operator import add
from pathlib import Path

import numpy as np
import pytest

from gguf_export.checking.deviations import BadBlocks, Deviation, EncoderDifferences
from gguf_export.checking.findings import error


@pytest.mark.parametrize("seed", range(5))
def test_slabs_add_up_in_any_order(seed: int) -> None:
    rng = np.random.default_rng(seed)
    flags = rng.random((40, 8)) < 0.05
    slabs = [(0, 7), (7, 20), (20, 21), (21, 40)]
    whole = BadBlocks.of(flags.reshape(-1), (0, 40))
    random.Random(seed).shuffle(slabs)
    pieces = [
        Deviation(n_blocks=8 * (last - first), not_nearest=BadBlocks.of(flags[first:last], (first, last)))
        for first, last in slabs
    ]
    assert reduce(add, pieces, Deviation()) == Deviation(n_blocks=320, not_nearest=whole)
    assert (whole.n, whole.n_rows) == (flags.sum(), flags.any(axis=1).sum())


def test_damage_lies_together() -> None:
    scattered = np.zeros((100, 8), bool)
    scattered[::10, 0] = True
    together = np.zeros((100, 8), bool)
    together[40:50, 0] = True
    assert not BadBlocks.of(scattered, (0, 100)).are_local(800)
    assert BadBlocks.of(together, (0, 100)).are_local(800)
    assert BadBlocks.of(scattered, (0, 100)).are_local(100_000)


def test_many_differences_are_another_encoder() -> None:
    faults = [error(f"blk.{bid}.ffn_up.weight", "differs", "") for bid in range(3)]
    assert EncoderDifferences(100, 0, faults[:2]).findings(Path("a")) == faults[:2]
    for many in (EncoderDifferences(100, 0, faults), EncoderDifferences(100, 1, faults[:1])):
        (found,) = many.findings(Path("a"))
        assert (found.severity, found.place) == ("info", "a")


def test_errors_of_weights_that_are_zero() -> None:
    assert Deviation().relative_error == 0
    assert Deviation(squared_error=1.0).relative_error == float("inf")
    assert not Deviation(squared_error=float("nan"), squared_weights=1.0).relative_error <= 1e9
