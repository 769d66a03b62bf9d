"""Other bytes in the place of a file, of the same size and with the same time: what a careless look takes for it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path


def settled(path: Path) -> None:
    """Return when a change would get another time than that of the file: the clock of a file system has ticks."""
    probe = path.with_name("probe")
    probe.touch()
    while probe.stat().st_ctime_ns <= path.stat().st_ctime_ns:
        probe.touch()
    probe.unlink()


def renamed_over(path: Path) -> None:
    """Another file takes the name, as a download does that is done."""
    other = path.with_name("download.tmp")
    shutil.copy2(path, other)
    _flip(other)
    shutil.copystat(path, other)
    other.replace(path)


def written_over(path: Path) -> None:
    """One bit of the file itself changes, which no sample of some bytes shows."""
    times = path.stat()
    _flip(path)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def _flip(path: Path) -> None:
    with path.open("r+b") as file:
        at = path.stat().st_size * 2 // 3
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 1]))


WAYS: tuple[Callable[[Path], None], ...] = (renamed_over, written_over)
