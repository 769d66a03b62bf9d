"""What is asked of the operating system about files: locks, durability, the space they take."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from quantize.exceptions import OutputError

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

__all__ = [
    "LockedError",
    "allocated",
    "check_space",
    "durable",
    "durable_folder",
    "forget_pages",
    "lock",
    "still_at",
]

_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL)
_NO_FOLDER_SYNC = (errno.EINVAL, errno.EBADF, errno.ENOTSUP, errno.EACCES, errno.EPERM, errno.EISDIR)
_LOCKED_BYTE = 2**30  # of a file on Windows, where a locked byte cannot be read: one that no journal reaches


class LockedError(Exception):
    """Another process, or another part of this one, holds the lock."""


def lock(file: Any) -> bool:
    """Lock an open file until it is closed or its process ends, however it ends; never wait.

    Returns False where the file system knows no locks.

    Raises:
        LockedError: somebody else holds it.
    """
    if sys.platform == "win32":
        file.seek(_LOCKED_BYTE)
        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        except OSError:
            raise LockedError from None
        return True
    else:
        try:
            fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise LockedError from None
        except OSError as error:
            if error.errno in _NO_LOCKS:
                return False
            raise
        return True


def still_at(file: Any, path: Path) -> bool:
    """Whether an open file is still the one that has the name `path`."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def durable(file: Any) -> None:
    """Return when the disk holds what was written to an open file (macOS keeps it in the drive's cache otherwise)."""
    file.flush()
    if sys.platform == "darwin":
        with contextlib.suppress(OSError):
            fcntl.fcntl(file.fileno(), fcntl.F_FULLFSYNC)
            return
    os.fsync(file.fileno())


def forget_pages(file: Any) -> None:
    """Give back the memory in which the system caches a file that is durable and will not be read soon.

    A file larger than the memory would otherwise push out what is needed, such as the shards that are still to be read,
    and each page of the cache has to be found anew: on a virtual machine that took longer than the writing.
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def durable_folder(folder: Path) -> None:
    """Return when the disk holds the names in a folder; Windows and some network drives offer no such thing."""
    if sys.platform == "win32":
        return
    try:
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        if error.errno not in _NO_FOLDER_SYNC:
            raise


def allocated(path: Path) -> int:
    """Bytes of the disk that a file takes, 0 where there is none; a hole in a file takes none."""
    try:
        found = path.stat()
    except OSError:
        return 0
    return 512 * found.st_blocks if hasattr(found, "st_blocks") else found.st_size


def check_space(wanted: Iterable[tuple[Path, int]]) -> None:
    """Refuse before the work what would fail after hours of it.

    Args:
        wanted: output folders that exist, each with the bytes that will be written there.

    Raises:
        OutputError: a disk has less free space than all outputs on it need together.
    """
    needed: Counter[int] = Counter()
    free: dict[int, tuple[Path, int]] = {}
    for folder, n_bytes in wanted:
        device = folder.stat().st_dev
        needed[device] += n_bytes
        free[device] = (folder, shutil.disk_usage(folder).free)
    for device, n_bytes in needed.items():
        folder, available = free[device]
        if n_bytes > available:
            raise OutputError(
                f"{folder}: the files need {n_bytes / 2**30:.2f} GiB, {available / 2**30:.2f} GiB are free; "
                "make space or choose another folder with -o"
            )
