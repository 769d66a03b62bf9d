"""Kernels compiled ahead: in processes of their own where that can be, and else in this one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from places import ROOT

from quantize.blocks.jit import JIT

pytestmark = pytest.mark.skipif(not JIT, reason="nothing is compiled where NUMBA_DISABLE_JIT is set")

PROGRAM = """
import sys
import numpy as np
from quantize import compiling
from quantize.blocks import q1_0, q8_0
from quantize.tensors import QType

compiling.n_processor = lambda: 2
{before}
told = []
compiling.compile_kernels([(np.uint16, QType.Q8_0, False), (np.uint16, QType.Q1_0, True)], told.append)
print([(moment.done, moment.total) for moment in told])
print([sum(kernel.pack.stats.cache_misses.values()) for kernel in (q8_0, q1_0)])
"""


def compiled_here(folder: Path, before: str = "") -> list[int]:
    """How often the process that asked compiled the packing of the two types itself."""
    env = {**os.environ, "NUMBA_CACHE_DIR": str(folder), "PYTHONPATH": str(ROOT)}
    words = [sys.executable, "-c", PROGRAM.format(before=before)]
    done = subprocess.run(words, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    told, found = done.stdout.splitlines()
    assert told == "[(0, 2), (1, 2), (2, 2)]"
    return [int(n) for n in found.strip("[]").split(", ")]


def test_other_processes_compile_and_this_one_loads(tmp_path: Path) -> None:
    assert compiled_here(tmp_path) == [0, 0]
    before = "compiling.subprocess = None  # nothing is asked of others where all is kept"
    assert compiled_here(tmp_path, before) == [0, 0]


@pytest.mark.parametrize("program", ["/nothing/there", "false"])
def test_where_no_process_can_compile_this_one_does(tmp_path: Path, program: str) -> None:
    assert compiled_here(tmp_path, f"sys.executable = {program!r}") == [1, 1]
