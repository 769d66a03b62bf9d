"""Questions to the operating system about files: durability, the space they take, why a write failed."""

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

from gguf_export.files.sizes import size_in_words
from quantize.exceptions import NoSpaceError, OutputError, is_full

if sys.platform == "darwin":
    import fcntl

__all__ = [
    "allocated",
    "check_space",
    "durable",
    "durable_folder",
    "forget_pages",
    "free_bytes",
    "write_error",
]

_NO_FOLDER_SYNC = (errno.EINVAL, errno.EBADF, errno.ENOTSUP, errno.EACCES, errno.EPERM, errno.EISDIR)


def write_error(path: Path, error: OSError) -> OutputError:
    """This project's error for a file that cannot be written, with the reason; the caller raises it from `error`."""
    kind = NoSpaceError if is_full(error) else OutputError
    return kind(str(path), f"cannot be written: {error.strerror or error}")


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

    A file larger than the memory would otherwise push out pages that are needed, such as those of shards still to be
    read, and each page of the cache has to be found anew: on a virtual machine that took longer than the writing.
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
    """Bytes of the disk that a file takes, 0 where there is no file; a hole in a file takes none."""
    try:
        status = path.stat()
    except OSError:
        return 0
    return 512 * status.st_blocks if hasattr(status, "st_blocks") else status.st_size


def free_bytes(folder: Path) -> int:
    """Free bytes of the disk on which a folder lies, or will lie when it is made.

    Raises:
        OutputError: the disk does not say.
    """
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    try:
        return shutil.disk_usage(folder).free
    except OSError as error:
        raise write_error(folder, error) from error


def check_space(outputs: Iterable[tuple[Path, int]]) -> None:
    """Refuse, before hours of work, files for which a disk has no space.

    Args:
        outputs: folders that exist, each with the bytes that will be written there.

    Raises:
        OutputError: a folder is not there any more.
        NoSpaceError: a disk has less free space than all outputs on it need together.
    """
    needed: Counter[int] = Counter()
    free: dict[int, tuple[Path, int]] = {}
    for folder, n_bytes in outputs:
        try:
            device = folder.stat().st_dev
            free[device] = (folder, shutil.disk_usage(folder).free)
        except OSError as error:  # somebody has just removed it
            raise write_error(folder, error) from error
        needed[device] += n_bytes
    for device, n_bytes in needed.items():
        folder, available = free[device]
        if n_bytes > available:
            raise NoSpaceError(
                str(folder),
                f"the files need {size_in_words(n_bytes)}, {size_in_words(available)} are free",
                "make space or choose another folder",
            )
