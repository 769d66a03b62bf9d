"""Files that appear under their name when they are whole, and locks that outlive no process."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from gguf_export.files.disk import durable, durable_folder, forget_pages, lock, still_at
from quantize.exceptions import OutputError

__all__ = ["Lock", "is_device", "replacing", "write_text"]

PARTIAL_SUFFIX = ".partial"


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """The name under which to write what shall appear as `path`; it gets its name, durably, when the block ends well.

    Raises:
        OSError: the disk is full or broken; what stood under `path` stands there still.
    """
    path = path.resolve()  # a link stays a link
    if is_device(path):
        raise FileExistsError(errno.EEXIST, "something is there that is no file", str(path))
    partial = path.with_name(path.name + PARTIAL_SUFFIX)
    try:
        yield partial
        with partial.open("r+b") as file:
            durable(file)
            forget_pages(file)
        partial.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise
    durable_folder(path.parent)


def write_text(path: Path, text: str) -> None:
    """Write a text in UTF-8, whole or not at all; a device such as /dev/stdout takes it as it comes.

    Raises:
        OutputError: the disk is full or broken.
    """
    try:
        if is_device(path):
            path.write_text(text, encoding="utf-8", newline="\n")
            return
        with replacing(path) as partial:
            partial.write_text(text, encoding="utf-8", newline="\n")
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {error.strerror or error}") from error


def is_device(path: Path) -> bool:
    """Whether something is there that is no file, such as a terminal, a pipe or a folder: it cannot be replaced."""
    return path.exists() and not path.is_file()


class Lock:
    """An empty file, locked by the operating system for as long as this object, or its process, lives."""

    def __init__(self, path: Path) -> None:
        """Lock it; never wait.

        Raises:
            LockedError: another run holds it.
            OSError: the folder cannot be written.
        """
        self.path = path
        while True:
            self._file: Any = path.open("ab", buffering=0)
            try:
                self.is_known = lock(self._file)
                """Whether this file system knows locks."""
                if still_at(self._file, path):
                    return
            except BaseException:
                self._file.close()
                raise
            self._file.close()  # the run before ended and removed it between the opening and the locking

    def release(self) -> None:
        """Give it back; the file is removed."""
        if self._file.closed:
            return
        with contextlib.suppress(
            OSError
        ):  # Windows removes no open file; then it goes two lines further down
            self.path.unlink(missing_ok=True)
        self._file.close()
        if os.name == "nt":
            with contextlib.suppress(OSError):
                self.path.unlink(missing_ok=True)

    def __enter__(self) -> Lock:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()
