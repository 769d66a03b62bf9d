"""Fixtures that several test modules share."""

from __future__ import annotations

from pathlib import Path

import pytest
from places import BENCH, DEMO_MODEL


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
