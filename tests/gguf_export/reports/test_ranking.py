"""Verdicts by a printed rule, the files that no other beats, and what beats the rest."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest

from gguf_export.reports.ranking import RULE, Ranked, beaten_by, unbeaten, verdict


@pytest.mark.parametrize(
    ("kld", "word"),
    [
        (0.0, "as the original"),
        (-1e-9, "as the original"),  # rounding
        (0.00099, "as the original"),
        (0.001, "very good"),
        (0.005, "good"),
        (0.02, "fair"),
        (0.05, "last resort"),
        (math.inf, "last resort"),
        (math.nan, "-"),
    ],
)
def test_the_verdict_is_that_of_the_rule(kld: float, word: str) -> None:
    assert verdict(kld) == word
    assert word in ("-",) or f"“{word}”" in RULE


def test_beaten_is_what_is_no_smaller_and_worse() -> None:
    files = [
        Ranked("large", 10, 0.01),
        Ranked("wasteful", 9, 0.05),
        Ranked("good", 8, 0.02),
        Ranked("its twin", 8, 0.03),
        Ranked("best of the small", 5, 0.04),
        Ranked("unknown", 4, math.nan),
    ]
    assert beaten_by(files) == [None, "good", None, "good", None, None]
    assert [file.name for file in unbeaten(files)] == ["best of the small", "good", "large"]
    assert beaten_by([]) == [] and unbeaten([]) == []


def test_rounding_beats_nobody() -> None:
    assert beaten_by([Ranked("F16", 9, 3e-11), Ranked("BF16", 9, 1e-11)]) == [None, None]


def test_ranking_needs_nothing_heavy() -> None:
    script = (
        "import sys\nfrom gguf_export.reports import ranking\n"
        "print([name for name in ('torch', 'numpy', 'matplotlib', 'jinja2') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
