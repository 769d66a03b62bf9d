"""The formats of three levels and a codebook: IQ1_S, IQ1_M."""

from __future__ import annotations

from collections.abc import Callable

import block_checks
import ggml
import numpy as np
import pytest

from quantize.blocks.codebook import codebook
from quantize.blocks.iq1 import network
from quantize.blocks.iq1_entries import CHUNK, entries_of
from quantize.tensors import Array, QType

pytestmark = pytest.mark.numeric

QTYPES = [QType.IQ1_S, QType.IQ1_M]


@pytest.mark.parametrize(
    "check", block_checks.CHECKS, ids=lambda check: check.__name__.removeprefix("check_")
)
@pytest.mark.parametrize("qtype", QTYPES, ids=lambda qtype: qtype.name)
def test_format(check: Callable[[QType], None], qtype: QType) -> None:
    check(qtype)


def test_plain_python() -> None:
    block_checks.check_without_jit(*QTYPES)


@pytest.mark.parametrize("qtype", QTYPES, ids=lambda qtype: qtype.name)
def test_equal_weights_and_equal_errors(qtype: QType) -> None:
    """Few values and importances of 0 and 1: the order of equal weights, cuts and neighbours decides everywhere."""
    ggml.require()
    rng = np.random.default_rng(6)
    cases: dict[str, tuple[Array, Array | None]] = {}
    for n_values in (2, 3, 5, 20):
        weights = rng.integers(-n_values, n_values + 1, (150, 768)).astype(np.float32)
        for share in (0.05, 0.5, 1):
            importance = (rng.random(768) < share).astype(np.float32)
            cases[f"{n_values} values, {share} of them important"] = weights, importance
    assert block_checks.assert_bytes_of_ggml(qtype, cases) == len(cases)


@pytest.mark.parametrize("n", [16, 32])
def test_network_sorts(n: int) -> None:
    """Zeros and ones are enough: a network that sorts all of them sorts everything."""
    keys = np.random.default_rng(7).random((n, 20_000)) < np.linspace(0, 1, 20_000)
    expected = np.sort(keys, axis=0)
    for a, b in network(n):
        keys[[a, b]] = keys[a] & keys[b], keys[a] | keys[b]
    np.testing.assert_array_equal(keys, expected)


def test_chunks_hold_the_lists() -> None:
    """First chunk and further ones of a list are its neighbours in their order; changes count levels."""
    entries, book = entries_of(QType.IQ1_S), codebook(QType.IQ1_S)
    for pattern in np.flatnonzero(book.index < 0)[::97]:
        number = -1 - book.index[pattern]
        assert (
            entries.found[entries.numbers[pattern & 255] + 81 * entries.numbers[pattern >> 8]] == -1 - number
        )
        further = range(entries.chunks[number], entries.chunks[number + 1])
        near = np.concatenate([entries.near[number], *entries.near[further.start : further.stop]])
        listed = book.patterns[book.neighbours[book.starts[number] : book.starts[number + 1]]]
        np.testing.assert_array_equal(near[: len(listed)], listed)
        differing = near ^ np.uint16(pattern)
        n_changes = sum((differing >> 2 * k & 3 != 0).astype(int) for k in range(8))
        for at, chunk in enumerate(further, 1):
            assert entries.changes[chunk] == min(n_changes[at * CHUNK :].min(), 3)
