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
jobs = [(np.uint16, QType.Q8_0, False), (np.uint16, QType.Q1_0, True)]
{before}
told = []
compiling.compile_kernels(jobs, told.append)
print([moment.done for moment in told] == list(range(told[-1].total + 1)), told[-1].total > 2)
print([sum(kernel.pack.stats.cache_misses.values()) for kernel in (q8_0, q1_0)])
"""

BY_ANOTHER = """
units = compiling._missing([compiling.encoding(*job) for job in jobs])
with compiling._process() as worker:
    assert compiling._answered(worker)
    assert units and all(compiling._asked(worker, unit) for unit in units)
assert not compiling._missing([compiling.encoding(*job) for job in jobs])
"""


def compiled_here(folder: Path, before: str = "") -> list[int]:
    """How often the process that asked compiled the packing of the two types itself."""
    env = {**os.environ, "NUMBA_CACHE_DIR": str(folder), "PYTHONPATH": str(ROOT)}
    words = [sys.executable, "-c", PROGRAM.format(before=before)]
    done = subprocess.run(words, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    told, found = done.stdout.splitlines()
    assert told == f"True {'units' not in before}"
    return [int(n) for n in found.strip("[]").split(", ")]


def test_other_processes_compile_and_this_one_loads(tmp_path: Path) -> None:
    assert compiled_here(tmp_path, BY_ANOTHER) == [0, 0]


def test_what_is_kept_needs_no_process(tmp_path: Path) -> None:
    assert max(compiled_here(tmp_path)) <= 1  # the other process may have been quicker
    assert compiled_here(tmp_path, "units = compiling.subprocess = None") == [0, 0]


@pytest.mark.parametrize("program", ["/nothing/there", "false"])
def test_where_no_process_can_compile_this_one_does(tmp_path: Path, program: str) -> None:
    assert compiled_here(tmp_path, f"sys.executable = {program!r}") == [1, 1]
