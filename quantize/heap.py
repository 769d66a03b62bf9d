"""The memory that the C library has for arrays: kept for the next array, not given back after each."""

from __future__ import annotations

import ctypes
import sys
from contextlib import suppress
from functools import cache

__all__ = ["keep_freed_memory"]

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
KEPT = 64 * 2**20  # bytes at the end of each heap; a thread that encodes slabs fills a tenth
LARGEST = 32 * 2**20  # bytes of an array that comes from a heap, the most that glibc allows


@cache
def keep_freed_memory() -> None:
    """Let glibc keep what threads free, from now on in this process; nothing happens where the C library is another.

    By default it returns an array of some megabytes to the system as soon as it is freed, and the next one costs a
    thousand page faults; for each fault, and for each return, the threads of a process wait for each other. The memory
    in use at once stays the same: each thread goes on with what it had.
    """
    if sys.platform != "linux":
        return
    with suppress(OSError, AttributeError):  # musl has no such function
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_THRESHOLD, LARGEST)
        mallopt(_M_TRIM_THRESHOLD, KEPT)
