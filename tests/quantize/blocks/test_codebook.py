"""The codebooks of IQ1 to IQ3: entries, patterns, and the lists of what is near."""

from __future__ import annotations

import gguf.quants
import numpy as np
import pytest

from quantize.blocks.codebook import N_SHELLS, codebook
from quantize.blocks.neighbours import lists
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
    made = lists(qtype)
    assert made.is_shorter and made.counts[: made.n].sum() < 0.8 * made.counts[made.n :].sum()
    for _ in range(500):
        x = rng.uniform(-1, 6, 8)
        levels = np.clip(np.rint((x - 1) / 2), 0, 2).astype(int)
        found = made.entries[(levels << 2 * np.arange(8)).sum()]
        if found >= 0:
            continue
        weights = rng.chisquare(1, 8)
        best = []
        for number in (-1 - found, made.n - 1 - found):
            start = made.starts[number]
            patterns = made.patterns[start : start + made.counts[number]]
            q = 2 * (patterns[:, None].astype(int) >> 2 * np.arange(8) & 3) + 1
            best.append(patterns[(weights * (q - x) ** 2).sum(axis=1).argmin()])
        assert best[0] == best[1]
