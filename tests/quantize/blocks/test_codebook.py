"""The codebooks of IQ1 to IQ3: entries, patterns, and the lists of what is near."""

from __future__ import annotations

import gguf.quants
import numpy as np
import pytest

from quantize.blocks.codebook import N_SHELLS, codebook
from quantize.blocks.neighbour_lists import LENGTH, LENGTH_BITS, lists
from quantize.blocks.neighbour_steps import steps_of
from quantize.tensors import QType


@pytest.mark.parametrize("qtype", N_SHELLS, ids=lambda qtype: qtype.name)
def test_lists_as_a_sort_finds_them(qtype: QType) -> None:
    """ggml sorts all entries by distance and index, and cuts behind the last shell that it wants."""
    book = codebook(qtype)
    n_levels = len(getattr(gguf.quants, qtype.name).grid_map)
    size = book.levels.shape[1]
    groups = np.random.default_rng(0).integers(0, n_levels, (500, size))
    starts, padded = book.padded(16)
    assert not (starts % 16).any() and len(padded) == starts[-1]
    for group in groups:
        pattern = sum(int(level) << book.bits * k for k, level in enumerate(group))
        distances = np.square(book.levels.astype(int) - group).sum(axis=1)
        found = book.index[pattern]
        if found >= 0:
            assert distances[found] == 0 and book.patterns[found] == pattern
            continue
        assert distances.min() > 0
        outermost = np.unique(distances)[: N_SHELLS[qtype]][-1]
        expected = sorted((d, entry) for entry, d in enumerate(distances) if d <= outermost)
        neighbours = book.neighbours[book.starts[-1 - found] : book.starts[-found]]
        assert neighbours.tolist() == [entry for _, entry in expected]
        filled = padded[starts[-1 - found] : starts[-found]]
        assert filled[: len(neighbours)].tolist() == neighbours.tolist()
        assert (filled[len(neighbours) :] == neighbours[-1]).all() and len(filled) - len(neighbours) < 16


def test_made_once() -> None:
    assert codebook(QType.IQ2_XS) is codebook(QType.IQ2_XS)


@pytest.mark.parametrize("qtype", [QType.IQ2_XXS, QType.IQ2_XS], ids=lambda qtype: qtype.name)
def test_shortened_lists_have_the_best(qtype: QType) -> None:
    """Of groups that are rounded to a pattern, the nearest entry of the whole list is in the shortened one."""
    rng = np.random.default_rng(0)
    made, book = lists(qtype), codebook(qtype)
    places, patterns = made.table[1::2], made.patterns.reshape(-1)
    is_off = book.index < 0
    assert made.is_shorter and (places & LENGTH)[is_off].sum() < 0.8 * (made.whole & LENGTH)[is_off].sum()
    for _ in range(500):
        x = rng.uniform(-1, 6, 8)
        pattern = (np.clip(np.rint((x - 1) / 2), 0, 2).astype(int) << 2 * np.arange(8)).sum()
        if not is_off[pattern]:
            continue
        weights = rng.chisquare(1, 8)
        best = []
        for place in (int(places[pattern]), int(made.whole[pattern])):
            start = (place >> LENGTH_BITS) * made.patterns.shape[1]
            listed = patterns[start : start + (place & LENGTH)]
            q = 2 * (listed[:, None].astype(int) >> 2 * np.arange(8) & 3) + 1
            best.append(listed[(weights * (q - x) ** 2).sum(axis=1).argmin()])
        assert best[0] == best[1]


@pytest.mark.parametrize("qtype", [QType.IQ2_XXS, QType.IQ2_XS, QType.IQ2_S], ids=lambda qtype: qtype.name)
def test_steps(qtype: QType) -> None:
    """Bits tell of each weight whether it can go up or down a level, and whether that is an entry."""
    book = codebook(qtype)
    steps, entries = steps_of(book), {tuple(entry) for entry in book.levels.tolist()}
    assert (steps[book.patterns] == -1).all()
    n_far = 0
    for levels in np.random.default_rng(0).integers(0, 3, (500, 8)):
        if tuple(levels) in entries:
            continue
        expected = 0
        for k, level in enumerate(levels.tolist()):
            for to, first in ((level + 1, 0), (level - 1, 8)):
                if 0 <= to <= 2:
                    group = (*levels[:k].tolist(), to, *levels[k + 1 :].tolist())
                    expected |= 1 << first + k + (0 if group in entries else 16)
        pattern = (levels << 2 * np.arange(8)).sum()
        number = -1 - book.index[pattern]
        listed = book.levels[book.neighbours[book.starts[number] : book.starts[number + 1]]]
        is_far = abs(listed.astype(int) - levels).max() > 1
        n_far += is_far
        assert np.uint32(steps[pattern].view(np.uint32)) == (0 if is_far else expected)
    assert n_far < 250
