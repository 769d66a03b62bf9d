"""SHA256SUMS beside the files of a folder, as `sha256sum` writes and checks it."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
from pathlib import Path

from gguf_export.checking.findings import Finding, error, info
from gguf_export.files.disk import write_error
from gguf_export.files.opening import open_to_append, refuse_strange, status_of
from quantize.containers.untrusted import read_bytes, regular_size
from quantize.exceptions import GGUFError, OutputError
from quantize.sources.fingerprint import SeenFiles
from quantize.telling import OnProgress, Progress, silent

__all__ = ["SUMS", "check_sum", "read_sums", "sha256"]

SUMS = "SHA256SUMS"
MAX_BYTES = 2**24  # of a SHA256SUMS
READ_BYTES = 2**20


def check_sum(path: Path, progress: OnProgress = silent, known: str | None = None) -> Finding:
    """Check a file against the SHA256SUMS of its folder; where it is not listed yet, add it.

    Args:
        path: the file.
        progress: called with the bytes that are hashed.
        known: its hash, where it is known: the file is not read.

    Raises:
        GGUFError: the file, or SHA256SUMS, cannot be read.
        ModelChangedError: the file changed meanwhile; it is not added.
        OutputError: SHA256SUMS cannot be written.
    """
    sums = path.with_name(SUMS)
    if not path.name.isprintable():
        raise OutputError(str(path), f"a name that cannot stand in {SUMS}", "rename the file")
    refuse_strange(sums)  # a stranger's folder could make it lead to any file of the user's
    listed, separator = _listed(sums)
    if path.name not in listed:
        digest = _add(sums, separator, path, progress, known)
        return info(str(path), f"SHA-256 {digest} was added to {SUMS}")
    digest = known or sha256(path, progress)
    if listed[path.name] != digest:
        return error(
            str(path),
            f"SHA-256 is {digest}, {SUMS} says {listed[path.name]}",
            f"the file is damaged: fetch it again; if it was made anew, remove its line from {SUMS}",
        )
    return info(str(path), f"SHA-256 is {digest}, as {SUMS} says")


def read_sums(sums: Path) -> dict[str, str]:
    """What a SHA256SUMS says: name of a file, as it is spelled there -> hash, hexadecimal; empty where there is none.

    Raises:
        GGUFError: it cannot be read.
    """
    return _listed(sums)[0]


def sha256(path: Path, progress: OnProgress = silent) -> str:
    """The SHA-256 of a file, hexadecimal.

    Raises:
        GGUFError: the file cannot be read.
        ModelChangedError: it changed meanwhile.
    """
    total, done = regular_size(path, GGUFError), 0
    seen = SeenFiles([path], GGUFError)
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while data := file.read(READ_BYTES):
                digest.update(data)
                done += len(data)
                progress(Progress("hashing", done, total))
            seen.confirm(path, file.fileno())
    except OSError as fault:
        raise GGUFError(str(path), f"cannot be read: {fault.strerror}") from None
    return digest.hexdigest()


def _add(sums: Path, separator: str, path: Path, progress: OnProgress, known: str | None) -> str:
    """Add the line of a file whole or not at all, and return the file's hash."""
    is_new = status_of(sums) is None
    try:
        with open_to_append(sums) as file:  # before the work, which may take minutes
            end = file.seek(0, os.SEEK_END)
            try:
                digest = known or sha256(path, progress)
                line = f"{separator}{digest}  {path.name}\n".encode()
                if file.write(line) < len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            except BaseException:
                with contextlib.suppress(OSError):
                    file.truncate(end)
                    if is_new:
                        sums.unlink()
                raise
    except OSError as fault:
        raise write_error(sums, fault) from fault
    return digest


def _listed(sums: Path) -> tuple[dict[str, str], str]:
    """File name -> hash, and the line break that is missing before a new line.

    A line is the hash, a space, a space or an asterisk, and the name.
    """
    if not sums.exists():
        return {}, ""
    try:
        text = read_bytes(sums, MAX_BYTES, GGUFError).decode("utf-8")
    except UnicodeDecodeError:
        raise GGUFError(str(sums), "cannot be read as text", "remove it") from None
    listed = {}
    for line in text.replace("\r\n", "\n").split("\n"):
        digest, _, name = line.partition(" ")
        if len(digest) == 64 and name[:1] in (" ", "*"):
            listed[name[1:]] = digest.lower()
    return listed, "\n" if text and not text.endswith("\n") else ""
