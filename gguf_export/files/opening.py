"""The one way in which files are opened for writing: no link is followed, and nothing but a plain file is written to.

A folder may be a stranger's, unpacked from an archive: what lies in it under the names of our working files could lead
to any file of the user's, or be a pipe on which a program waits for ever.
"""

from __future__ import annotations

import os
import stat
from io import FileIO
from pathlib import Path

from quantize.exceptions import OutputError

__all__ = [
    "FileId",
    "file_id",
    "identity_of",
    "is_there",
    "open_again",
    "open_new",
    "open_to_append",
    "plain_size",
    "refuse_gone",
    "refuse_strange",
    "status_of",
    "stream_number",
]

FileId = tuple[int, int]
"""Device and inode: what tells whether two names, or a name and an open file, are the same file."""

_STRANGE = {
    stat.S_IFLNK: "is a symbolic link, which is not followed",
    stat.S_IFDIR: "is a folder where a file is to be written",
    stat.S_IFIFO: "is a pipe, which is not written to",
}
_FLAGS = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)  # a pipe opens at once, and is refused


def open_new(path: Path) -> FileIO:
    """Create a file for writing and reading; a plain file that is there is removed first, never written into.

    Raises:
        OutputError: something other than a plain file is there.
        OSError: the file cannot be made.
    """
    refuse_strange(path)
    path.unlink(missing_ok=True)
    return _plain(FileIO(path, "x+", opener=_open), path)


def open_again(path: Path) -> FileIO:
    """Open a file for writing and reading, with what is in it.

    Raises:
        OutputError: something other than a plain file is there, or the file has a second name.
        OSError: there is no file, or it cannot be opened.
    """
    refuse_strange(path)
    return _plain(FileIO(path, "r+", opener=_open), path)


def open_to_append(path: Path) -> FileIO:
    """Open or create a file for reading, and for writing at its end.

    Raises:
        OutputError: something other than a plain file is there, or the file has a second name.
        OSError: the file cannot be opened or made.
    """
    refuse_strange(path)
    return _plain(FileIO(path, "a+", opener=_open), path)


def status_of(path: Path) -> os.stat_result | None:
    """The status of what lies under a name, no link followed; None where there is nothing.

    Raises:
        OutputError: the name cannot be used, because it is too long or in a folder that may not be entered.
    """
    try:
        return path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise OutputError(str(path), f"cannot be written: {error.strerror}", "choose another name") from error


def refuse_strange(path: Path) -> None:
    """Refuse a name under which something lies that is no plain file; nothing is touched.

    Raises:
        OutputError: there is a symbolic link, a folder, a pipe, a device.
    """
    if (status := status_of(path)) is not None:
        _refuse(path, status)


def is_there(identity: FileId, path: Path) -> bool:
    """Whether a name leads, without a link, to the file of this identity."""
    try:
        return file_id(path.lstat()) == identity
    except OSError:
        return False


def refuse_gone(identity: FileId, path: Path) -> None:
    """Refuse to go on with an open file that its name leads to no more.

    Raises:
        OutputError: the file, or its folder, was removed, or something else was put in its place.
    """
    if is_there(identity, path):
        return
    if not path.parent.is_dir():
        place, message = path.parent, "the folder was removed while files were written into it"
    elif status_of(path) is None:
        place, message = path, "was removed while it was written"
    else:
        place, message = path, "was replaced by something else while it was written"
    raise OutputError(str(place), message, "start the run again")


def file_id(status: os.stat_result) -> FileId:
    """The identity of a file."""
    return status.st_dev, status.st_ino


def identity_of(path: Path) -> FileId | None:
    """The identity of what lies under a name; None where there is nothing. Raises as `status_of`."""
    status = status_of(path)
    return None if status is None else file_id(status)


def plain_size(path: Path) -> int | None:
    """Bytes of a plain file; None where there is none, or a link: what it leads to is not what an earlier run made."""
    status = status_of(path)
    return status.st_size if status is not None and stat.S_ISREG(status.st_mode) else None


def stream_number(path: Path) -> int | None:
    """The open file of this process that a name such as /dev/stdout stands for, None for other names.

    Such a name may lead to a plain file, where the shell has put one behind it: that file is the shell's.
    """
    name = os.path.normpath(path.absolute())
    if name in _STREAMS:
        return _STREAMS[name]
    folder, _, number = name.rpartition(os.sep)
    is_numbered = folder in ("/dev/fd", "/proc/self/fd", f"/proc/{os.getpid()}/fd") and number.isdecimal()
    return int(number) if is_numbered else None


_STREAMS = {"/dev/stdin": 0, "/dev/stdout": 1, "/dev/stderr": 2}


def _open(path: str, flags: int) -> int:
    return os.open(path, flags | _FLAGS, 0o666)


def _plain(file: FileIO, path: Path) -> FileIO:
    """The file, if it is a plain one under this name alone: it is open, so that nobody can exchange it any more."""
    try:
        status = os.fstat(file.fileno())
        _refuse(path, status)
        if status.st_nlink > 1:
            raise OutputError(
                str(path), "has a second name (a hard link), whose content would change, too", "remove it"
            )
    except BaseException:
        file.close()
        raise
    return file


def _refuse(path: Path, status: os.stat_result) -> None:
    kind = stat.S_IFMT(status.st_mode)
    if kind != stat.S_IFREG:
        raise OutputError(str(path), _STRANGE.get(kind, "is no plain file"), "remove it")
