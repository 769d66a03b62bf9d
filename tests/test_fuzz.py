"""Files from strangers, briefly; at length by `scripts/torture --fuzz 20000`. And every input that once was a bug."""

from __future__ import annotations

from pathlib import Path

import pytest
from fuzzing import TARGETS, fuzz, prepare_seeds


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare_seeds(tmp_path_factory.mktemp("fuzz"))


@pytest.mark.parametrize("name", TARGETS)
def test_readers_succeed_or_say_why_not(folder: Path, name: str) -> None:
    fuzz(TARGETS[name], folder, 150)
