"""Where the tests find things."""

from __future__ import annotations

from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]
ROOT = TESTS.parent
SCRIPTS = ROOT / "scripts"
HELPERS = TESTS / "helpers"
GOLDEN = TESTS / "golden"
SNAPSHOTS = TESTS / "snapshots"
DEMO_MODEL = SCRIPTS / "demo_model"
BENCH = ROOT.parent / "shared" / "bench"
"""A folder beside the repository: a larger trained frankenMoE, texts, and llama.cpp's results on both."""

needs_bench = pytest.mark.skipif(
    not BENCH.is_dir(), reason="shared/bench, a folder beside the repository, is not here"
)
