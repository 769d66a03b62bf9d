"""Files that one run holds and no other: locked by the operating system, which unlocks them when a process ends."""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path
from types import TracebackType

from filelock import lock_descriptor

from gguf_export.files.opening import file_id, is_there, open_to_append
from quantize.exceptions import OutputBusyError

__all__ = ["LockedFile"]

_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL)


class LockedFile:
    """A file that is open for reading and appending, and locked for as long as it is open.

    The lock dies with its process, however that ends: a killed run leaves the file and no lock. A lock is never waited
    for, and only a plain file is opened (see `files.opening`). As a context manager it removes the file at the end.
    """

    def __init__(self, path: Path, label: str) -> None:
        """Open or create the file, and lock it.

        Args:
            path: of the file.
            label: the output that the lock protects, as messages call it.

        Raises:
            OutputBusyError: another run holds the lock.
            OutputError: something other than a plain file of one name is there.
            OSError: the file cannot be opened or made.
        """
        self.path = path
        while True:
            # Unbuffered, so that closing does not try again what could not be written.
            self.file = open_to_append(path)
            self._identity = file_id(os.fstat(self.file.fileno()))
            try:
                self.is_locked = self._lock(label)
                """False where the file system knows no locks."""
                if self.is_there:
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

    @property
    def is_there(self) -> bool:
        """Whether the name still leads to the open file."""
        return is_there(self._identity, self.path)

    def close(self) -> None:
        """Unlock the file and leave it where it is."""
        self.file.close()

    def remove(self) -> None:
        """Remove the file, then unlock it: whoever opens the name next gets a new file. Another's file stays."""
        if self.file.closed:
            return
        is_ours = self.is_there
        with contextlib.suppress(OSError):  # Windows removes no open file
            if is_ours:
                self.path.unlink(missing_ok=True)
        self.file.close()
        if os.name == "nt" and is_ours:
            with contextlib.suppress(OSError):
                self.path.unlink(missing_ok=True)

    def __enter__(self) -> LockedFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()
