"""glibc keeps freed memory when it is told to; elsewhere nothing happens."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest

from quantize.heap import keep_freed_memory

FAULTS = """
import resource
import numpy as np
from quantize.heap import keep_freed_memory

keep_freed_memory()
for turn in range(50):
    kept = [np.ones(1 << 20, np.float32) for _ in range(2)]
    del kept
    if turn == 0:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "gnu_get_libc_version"), reason="glibc"
)
def test_freed_memory_is_used_again() -> None:
    assert int(subprocess.check_output([sys.executable, "-c", FAULTS])) < 200


def test_another_system_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_name: None) -> None:
        raise AssertionError("no C library is looked for")

    keep_freed_memory.cache_clear()
    monkeypatch.setattr(ctypes, "CDLL", fail)
    monkeypatch.setattr(sys, "platform", "darwin")
    keep_freed_memory()
    keep_freed_memory.cache_clear()
