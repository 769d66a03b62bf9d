"""`moe-gguf warm`: fills an empty cache, so that a later command compiles nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import check_one_line, invoke
from places import DEMO_MODEL, ROOT

from gguf_export.commands.exit_codes import OUTPUT, USAGE
from quantize.blocks.jit import JIT

needs_jit = pytest.mark.skipif(not JIT, reason="nothing is compiled where NUMBA_DISABLE_JIT is set")


def run(cache: Path, *words: object) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "NUMBA_CACHE_DIR": str(cache), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", "from gguf_export.cli import main; main(prog_name='moe-gguf')"]
    done = subprocess.run(
        [*command, *map(str, words)], env=env, cwd=ROOT, capture_output=True, text=True, check=False
    )
    return done


def files_of(cache: Path) -> set[Path]:
    return {path for path in cache.rglob("*") if path.is_file()}


@needs_jit
@pytest.mark.slow
def test_an_export_compiles_nothing_after_it(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    first = run(cache, "warm", "Q8_0", "--no-feedback", "--json")
    assert first.returncode == 0, first.stderr
    told, kept = json.loads(first.stdout), files_of(cache)
    assert told["compiled"] > 0 and "Q8_0" in told["types"] and told["processor"]
    assert told["bytes"] == sum(path.stat().st_size for path in kept)
    assert {str(path.parent) for path in kept} <= set(told["folders"])
    done = run(cache, "export", DEMO_MODEL, "-t", "Q8_0", "-o", tmp_path)
    assert done.returncode == 0, done.stderr
    assert files_of(cache) == kept
    for folder in (*cache.iterdir(), cache):  # as in a container whose files are read-only
        folder.chmod(0o555)
    again = run(cache, "warm", "q8_0", "--no-feedback")
    assert again.returncode == 0, again.stderr
    assert "nothing to compile" in again.stdout and str(cache) in again.stdout
    assert files_of(cache) == kept


@needs_jit
def test_a_cache_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = run(tmp_path / "file" / "cache", "warm", "Q8_0", "--quiet")
    assert done.returncode == OUTPUT and not done.stdout
    (line,) = done.stderr.splitlines()
    assert "no folder that can be written" in line and "NUMBA_CACHE_DIR" in line


def test_a_wrong_type() -> None:
    check_one_line(invoke("warm", "Q4_K_M", "Q4_Z"), "unknown type 'Q4_Z'", USAGE)
