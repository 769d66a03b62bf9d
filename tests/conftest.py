"""Fixtures that several test modules share, and the budget of the quick tests."""

from __future__ import annotations

from pathlib import Path

import pytest
from places import BENCH, DEMO_MODEL

QUICK_SECONDS = 120
"""Budget of `scripts/test -m "not slow"` on two cores."""


@pytest.fixture(scope="session")
def demo_model() -> Path:
    """The bundled checkpoint: trained, four experts, three bf16 shards."""
    return DEMO_MODEL


@pytest.fixture(scope="session")
def bench() -> Path:
    """The folder `shared/bench` beside the repository: a larger trained frankenMoE and llama.cpp's results on it."""
    if not BENCH.is_dir():
        pytest.skip("shared/bench, a folder beside the repository, is not here")
    return BENCH


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say what the quick and the slow tests took, setup included."""
    seconds = {True: 0.0, False: 0.0}
    for reports in terminalreporter.stats.values():
        for report in reports:
            if isinstance(report, pytest.TestReport):
                seconds["slow" in report.keywords] += report.duration
    terminalreporter.write_line(
        f'"not slow": {seconds[False]:.0f} s of the budget of {QUICK_SECONDS} s; slow: {seconds[True]:.0f} s'
    )
