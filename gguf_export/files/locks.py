"""Files that one run holds and no other: locked by the operating system, which unlocks them when a process ends."""

from __future__ import annotations

import contextlib
import errno
import os
from io import FileIO
from pathlib import Path
from types import TracebackType

from filelock import lock_descriptor

from quantize.exceptions import OutputBusyError

__all__ = ["LockedFile"]

_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL)


class LockedFile:
    """A file that is open for reading and appending, and locked for as long as it is open.

    The lock dies with its process, however that ends: a killed run leaves the file and no lock. A lock is never waited
    for, and a symbolic link under the file's name is not followed. As a context manager it removes the file at the end.
    """

    def __init__(self, path: Path, label: str) -> None:
        """Open or create the file, and lock it.

        Args:
            path: of the file.
            label: the output that the lock protects, as messages call it.

        Raises:
            OutputBusyError: another run holds the lock.
            OSError: the file cannot be opened or made.
        """
        self.path = path
        while True:
            # Unbuffered, so that closing does not try again what could not be written.
            self.file = FileIO(path, "a+", opener=_open_no_link)
            try:
                self.is_locked = self._lock(label)
                """False where the file system knows no locks."""
                if self._is_still_there():
                    return
            except BaseException:
                self.file.close()
                raise
            self.file.close()  # the run before removed it between our opening and our locking

    def _lock(self, label: str) -> bool:
        try:
            is_locked = lock_descriptor(self.file.fileno(), blocking=False)
        except OSError as error:
            if error.errno in _NO_LOCKS:
                return False
            raise
        if not is_locked:
            raise OutputBusyError(
                label, "another run is writing this file", "wait for it, or choose another name or folder"
            )
        return True

    def _is_still_there(self) -> bool:
        """Whether the name still leads to the open file."""
        try:
            return os.path.samestat(os.fstat(self.file.fileno()), self.path.lstat())
        except FileNotFoundError:
            return False

    def close(self) -> None:
        """Unlock the file and leave it where it is."""
        self.file.close()

    def remove(self) -> None:
        """Remove the file, then unlock it: whoever opens the name next gets a new file."""
        if self.file.closed:
            return
        with contextlib.suppress(OSError):  # Windows removes no open file
            self.path.unlink(missing_ok=True)
        self.file.close()
        if os.name == "nt":
            with contextlib.suppress(OSError):
                self.path.unlink(missing_ok=True)

    def __enter__(self) -> LockedFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()


def _open_no_link(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)
