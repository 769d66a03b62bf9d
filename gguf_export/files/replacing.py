"""Files that appear under their name when they are whole."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from io import BufferedRandom
from pathlib import Path

from gguf_export.files.disk import durable, durable_folder, forget_pages, write_error
from gguf_export.files.opening import file_id, is_there, open_new, refuse_gone, stream_number

__all__ = [
    "PARTIAL_SUFFIX",
    "is_device",
    "partial_path",
    "replacing",
    "write_bytes",
    "write_files",
    "write_text",
]

PARTIAL_SUFFIX = ".partial"


def partial_path(path: Path) -> Path:
    """The name under which a file is written until it is whole."""
    return path.with_name(path.name + PARTIAL_SUFFIX)


@contextmanager
def replacing(path: Path) -> Iterator[BufferedRandom]:
    """A new file, open to be written, that shall appear as `path`; it gets its name, durably, when the block ends well.

    A link under that name is replaced, not followed: its target belongs to whoever put it there.

    Raises:
        OSError: the disk is full or broken; what stood under `path` stands there still.
        OutputError: the file was removed or replaced meanwhile, or something strange lies under its working name.
    """
    if is_device(path):
        raise FileExistsError(errno.EEXIST, "something is there that is no file", str(path))
    partial = partial_path(path)
    raw = open_new(partial)
    identity = file_id(os.fstat(raw.fileno()))
    file = BufferedRandom(raw)
    try:
        yield file
        durable(file)
        forget_pages(file)
        refuse_gone(identity, partial)
        file.close()
        partial.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):  # closing writes what is left: the first error is the one to tell
            file.close()
        with contextlib.suppress(OSError):
            if is_there(identity, partial):
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
    write_files([(path, content)])


def write_files(contents: Sequence[tuple[Path, bytes]]) -> None:
    """Write files that belong together: all are written before the first gets its name; devices come last.

    Raises:
        OutputError: the disk is full (`NoSpaceError`) or broken.
    """
    with ExitStack() as stack:
        for path, content in contents:
            if not _is_stream(path):
                stack.enter_context(_errors(path))
                file = stack.enter_context(replacing(path))
                with _errors(path):
                    file.write(content)
                    file.flush()
    for path, content in contents:
        if _is_stream(path):
            with _errors(path):
                _write_stream(path, content)


@contextmanager
def _errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise write_error(path, error) from error


def _is_stream(path: Path) -> bool:
    """Whether bytes can be put there though it is no file; a folder takes none."""
    return is_device(path) and not path.is_dir()


def _write_stream(path: Path, content: bytes) -> None:
    """Write at the place where a stream of this process is; opened by its name, a file behind it would be emptied."""
    number = stream_number(path)
    handle = _opened_stream(path) if number is None else os.dup(number)
    with os.fdopen(handle, "wb") as file:
        file.write(content)


def _opened_stream(path: Path) -> int:
    """Open a device or a pipe for writing; for a reader of a pipe, who may never come, nobody waits.

    Raises:
        OSError: it cannot be opened.
    """
    try:
        handle = os.open(path, os.O_WRONLY | getattr(os, "O_NONBLOCK", 0))
    except OSError as error:
        if error.errno == errno.ENXIO:
            raise OSError(error.errno, "nobody reads this pipe", str(path)) from None
        raise
    os.set_blocking(handle, True)
    return handle


def is_device(path: Path) -> bool:
    """Whether something is there that is no file, such as a terminal, a pipe or a folder: it cannot be replaced."""
    if stream_number(path) is not None:
        return True
    try:
        return path.exists() and not path.is_file()
    except OSError:  # a name that is too long
        return False
