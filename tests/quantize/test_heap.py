"""glibc keeps freed memory, or gives it back, as it is told; elsewhere nothing happens."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest

from quantize.heap import give_back_freed_memory, keep_freed_memory

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


RESIDENT = """
import numpy as np
from quantize.heap import give_back_freed_memory

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096

give_back_freed_memory()
np.ones(1 << 22, np.float32)  # by itself glibc keeps whatever is smaller than this from now on
before = resident()
kept = [np.ones(1 << 21, np.float32) for _ in range(8)]
last = np.ones(1 << 18, np.float32)
del kept
print(resident() - before)
"""
ON_GLIBC = pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "gnu_get_libc_version"), reason="glibc"
)


@ON_GLIBC
def test_freed_memory_is_used_again() -> None:
    assert int(subprocess.check_output([sys.executable, "-c", FAULTS])) < 200


@ON_GLIBC
def test_freed_memory_is_given_back() -> None:
    """What a heap keeps behind an array that stays is lost to the system."""
    assert int(subprocess.check_output([sys.executable, "-c", RESIDENT])) < 8 * 2**20


def test_another_system_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_name: None) -> None:
        raise AssertionError("no C library is looked for")

    monkeypatch.setattr(ctypes, "CDLL", fail)
    monkeypatch.setattr(sys, "platform", "darwin")
    keep_freed_memory()
    give_back_freed_memory()
