"""`scripts/torture`, briefly: its long runs are by hand."""

from __future__ import annotations

import subprocess
import sys

import pytest
from places import SCRIPTS

SCRIPT = SCRIPTS / "torture"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="runs are forked and killed")
def test_kills_at_random_moments_lose_nothing() -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--demo", "--kills", "4"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("seed ")
    assert "nothing was lost and nothing was wrong" in done.stdout
