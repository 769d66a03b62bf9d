"""The benchmark of passes on a GPU: tried on the CPU with a tiny model, and what it says where there is no GPU."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from places import SCRIPTS


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPTS / "bench_gpu"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=SCRIPTS.parent)


@pytest.mark.slow
def test_the_whole_script_on_the_cpu(tmp_path: Path) -> None:
    done = run(str(tmp_path), "--device", "cpu", "--small", "--chunks", "1", "--compare-chunks", "1")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("times the reading") == 6 and "figures are those of the CPU" in done.stdout
    assert {path.name for path in (tmp_path / "files").iterdir()} >= {"Q8_0.gguf", "Q6_K.gguf", "IQ4_XS.gguf"}


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_machine_without_a_gpu_is_told_so(tmp_path: Path) -> None:
    done = run(str(tmp_path))
    assert done.returncode == 2 and not done.stdout and not list(tmp_path.iterdir())
    assert "device cuda: torch cannot compute there" in done.stderr and "nothing was measured" in done.stderr
