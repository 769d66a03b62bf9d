"""`mergekit-moe`, run on donors. It is looked for in $MOE_GGUF_MERGEKIT, beside this Python, where `scripts/test` puts
it, and on PATH."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest


def mergekit_moe() -> str | None:
    """The path of the program, None where there is none."""
    given = os.environ.get("MOE_GGUF_MERGEKIT")
    if given:
        return given
    return shutil.which("mergekit-moe", path=str(Path(sys.executable).parent)) or shutil.which("mergekit-moe")


def merged(folder: Path, recipe: dict[str, Any]) -> Path:
    """The checkpoint that mergekit-moe makes of a recipe; skips the test where there is no such program."""
    program = mergekit_moe()
    if program is None:
        pytest.skip("mergekit-moe is not installed: pip install 'mergekit>=0.1.5', or run scripts/test")
    (folder / "recipe.yml").write_text(json.dumps(recipe), encoding="utf-8")  # YAML holds all of JSON
    arguments = [str(folder / "recipe.yml"), str(folder / "model"), "--device", "cpu", "--random-seed", "0"]
    offline = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "hub"), "OMP_NUM_THREADS": "2"}
    done = subprocess.run(
        [program, *arguments],
        env=os.environ | offline,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return folder / "model"
