"""The memory that the C library has for arrays: kept for the next array, or given back after each."""

from __future__ import annotations

import ctypes
import sys
from contextlib import suppress

__all__ = ["give_back_freed_memory", "keep_freed_memory"]

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
KEPT = 64 * 2**20  # bytes at the end of each heap; a thread that encodes slabs fills a tenth
LARGEST = 32 * 2**20  # bytes of an array that comes from a heap, the most that glibc allows


def keep_freed_memory() -> None:
    """Let glibc keep what threads free, from now on in this process; nothing happens where the C library is another.

    By default it returns an array of some megabytes to the system as soon as it is freed, and the next one costs a
    thousand page faults; for each fault, and for each return, the threads of a process wait for each other. The memory
    in use at once stays the same: each thread goes on with what it had.
    """
    _set(LARGEST, KEPT)


def give_back_freed_memory() -> None:
    """Let glibc give arrays of 2 MiB and more back to the system when they are freed, from now on in this process.

    By itself it raises that bound with the arrays it meets, to 32 MiB, and smaller ones stay in the heap of the thread
    that had them: passes that have large matrices and small pieces of them by turns keep both.
    """
    _set(2 * 2**20, 16 * 2**20)


def _set(largest: int, kept: int) -> None:
    """Choose the bytes of the largest array that comes from a heap, and of what stays at the end of each heap."""
    if sys.platform != "linux":
        return
    with suppress(OSError, AttributeError):  # musl has no such function
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_THRESHOLD, largest)
        mallopt(_M_TRIM_THRESHOLD, kept)
