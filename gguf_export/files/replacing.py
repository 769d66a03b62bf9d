"""Files that appear under their name when they are whole."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gguf_export.files.disk import durable, durable_folder, forget_pages, write_error

__all__ = ["PARTIAL_SUFFIX", "is_device", "partial_path", "replacing", "write_bytes", "write_text"]

PARTIAL_SUFFIX = ".partial"


def partial_path(path: Path) -> Path:
    """The name under which a file is written until it is whole."""
    return path.with_name(path.name + PARTIAL_SUFFIX)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """The name under which to write what shall appear as `path`; it gets its name, durably, when the block ends well.

    Raises:
        OSError: the disk is full or broken; what stood under `path` stands there still.
    """
    path = path.resolve()  # a link stays a link
    if is_device(path):
        raise FileExistsError(errno.EEXIST, "something is there that is no file", str(path))
    partial = partial_path(path)
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
    """Write a text in UTF-8, see `write_bytes`."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file, whole or not at all; a device such as /dev/stdout takes it as it comes.

    Raises:
        OutputError: the disk is full (`NoSpaceError`) or broken.
    """
    try:
        if is_device(path):
            path.write_bytes(content)
            return
        with replacing(path) as partial:
            partial.write_bytes(content)
    except OSError as error:
        raise write_error(path, error) from error


def is_device(path: Path) -> bool:
    """Whether something is there that is no file, such as a terminal, a pipe or a folder: it cannot be replaced."""
    return path.exists() and not path.is_file()
