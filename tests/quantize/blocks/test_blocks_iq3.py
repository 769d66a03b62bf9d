"""The formats of groups of four weights: IQ3_XXS, IQ3_S."""

from __future__ import annotations

from collections.abc import Callable

import block_checks
import numpy as np
import pytest
from numba import njit

from quantize.blocks.codebook import codebook
from quantize.blocks.iq3_cells import N_PATTERNS, cell_of, cells, find_one
from quantize.tensors import Array, QType

pytestmark = pytest.mark.numeric

QTYPES = [QType.IQ3_XXS, QType.IQ3_S]


@pytest.mark.parametrize(
    "check", block_checks.CHECKS, ids=lambda check: check.__name__.removeprefix("check_")
)
@pytest.mark.parametrize("qtype", QTYPES, ids=lambda qtype: qtype.name)
def test_format(check: Callable[[QType], None], qtype: QType) -> None:
    check(qtype)


def test_plain_python() -> None:
    block_checks.check_without_jit(*QTYPES)


@njit()
def find_all(scales: Array, x: Array, a: Array, lists: Array, packed: Array, found: Array) -> None:
    for n in range(len(x)):
        group, weights = (x[n, 0], x[n, 1], x[n, 2], x[n, 3]), (a[n, 0], a[n, 1], a[n, 2], a[n, 3])
        cell = cell_of(np.float32(0.5) * (np.float32(1) / scales[n]), group)
        entry = find_one(lists[cell], scales[n], group, weights, packed)
        found[n, 0], found[n, 1] = cell, entry >> 16


def groups(n: int) -> tuple[Array, Array, Array]:
    """Scales [n], magnitudes and weights [n, 4]; many magnitudes in the middle of two levels, or a few steps beside."""
    rng = np.random.default_rng(7)
    scales = np.exp2(rng.uniform(-20, 5, n)).astype(np.float32)
    places = rng.uniform(-1, 18, (n, 4)).astype(np.float32)
    middles = 2 * rng.integers(1, 8, (n, 4)).astype(np.float32)
    x = np.where(rng.random((n, 4)) < 0.4, middles, places) * scales[:, None]
    x = (x.view(np.int32) + rng.integers(-3, 4, (n, 4), np.int32)).view(np.float32)
    a = rng.chisquare(1, (n, 4)).astype(np.float32)
    a = np.where(rng.random((n, 4)) < 0.2, rng.choice(np.array([0, 1, 1e-30, 1e10], np.float32), (n, 4)), a)
    return scales, x, a


@pytest.mark.parametrize("qtype", QTYPES, ids=lambda qtype: qtype.name)
def test_shortened_lists_lack_nothing(qtype: QType) -> None:
    """What ggml finds in whole lists, also where rounding decides which levels are nearest, or between neighbours."""
    scales, x, a = groups(20_000)
    found = np.empty((len(x), 2), np.int64)
    find_all(scales, x, a, cells(qtype).lists, cells(qtype).packed, found)
    inverse = np.float32(1) / scales
    levels = np.rint(np.float32(0.5) * (inverse[:, None] * x - np.float32(1))).clip(0, 7).astype(np.int64)
    patterns = (levels << 3 * np.arange(4)).sum(axis=1)
    np.testing.assert_array_equal(found[:, 0] % N_PATTERNS, patterns)
    assert 0.05 < (found[:, 0] >= N_PATTERNS).mean() < 0.95
    book = codebook(qtype)
    for n, pattern in enumerate(patterns):
        index = book.index[pattern]
        if index < 0:
            whole = book.neighbours[book.starts[-1 - index] : book.starts[-index]]
            q = 2 * book.levels[whole].astype(np.float32) + 1
            diff = scales[n] * q - x[n]
            terms = a[n] * diff * diff
            errors = terms[:, 0] + terms[:, 1] + terms[:, 2] + terms[:, 3]
            index = whole[errors.argmin()]
        assert found[n, 1] == index, f"group {n}: {x[n]} with scale {scales[n]}"
