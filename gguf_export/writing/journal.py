"""The journal of an output: which bytes of it are on the disk, so that a run that was killed goes on where it stopped.

`NAME.gguf.journal` lies beside `NAME.gguf.partial`. It holds lines of JSON: first the fingerprint of what is being
made, then `[offset, n_bytes, crc32]` for each piece of the file. A piece is noted after its bytes have reached the
disk, never before, and on the way back nothing is believed that its checksum does not confirm: a torn line or a disk
that lost power costs work, not truth.

The journal is locked by the run that writes it (see `files.locks`): two runs cannot write the same output.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from gguf_export.files.disk import durable, write_error
from gguf_export.files.durable import Piece
from gguf_export.files.locks import LockedFile
from gguf_export.writing.fingerprint import difference

__all__ = ["Journal", "journal_path"]

SUFFIX = ".journal"
FORMAT = 1
MAX_BYTES = 2**26  # of a journal that is read; that of a model of a terabyte takes a few megabytes


def journal_path(output: Path) -> Path:
    """Where the journal of an output lies."""
    return output.with_name(output.name + SUFFIX)


class Journal:
    """The journal of one output, open and locked; a context manager that leaves no empty journal behind."""

    def __init__(self, output: Path, fingerprint: Mapping[str, str]) -> None:
        """Open and lock it; what an earlier run left in it stays until `recall` or `begin`.

        Args:
            output: the final path of the file.
            fingerprint: everything that decides the file's bytes (`writing.fingerprint`).

        Raises:
            OutputBusyError: another run is writing this output.
            OutputError: the folder cannot be written, or something other than a plain file is there.
        """
        self.path = journal_path(output)
        self._fingerprint = dict(fingerprint)
        try:
            self._locked = LockedFile(self.path, str(output))
        except OSError as error:
            raise write_error(self.path, error) from error
        self._file = self._locked.file

    @property
    def is_locked(self) -> bool:
        """False where the file system knows no locks."""
        return self._locked.is_locked

    @property
    def is_there(self) -> bool:
        """Whether its name still leads to it: nobody removed or replaced it."""
        return self._locked.is_there

    def recall(self) -> tuple[list[Piece], str]:
        """The pieces that an earlier run noted, and, where it made something else, what differs.

        The latter is a phrase such as "the checkpoint changed", empty where there was no earlier run.
        """
        self._file.seek(0, os.SEEK_END)
        if self._file.tell() > MAX_BYTES:
            return [], "its journal is damaged"
        self._file.seek(0)
        *lines, _torn = self._file.read().split(b"\n")
        if not lines:
            return [], ""
        first = _json(lines[0])
        if not isinstance(first, dict) or first.pop("journal", None) != FORMAT:
            return [], "its journal is damaged, or of another version"
        if differs := difference(first, self._fingerprint):
            return [], differs
        pieces, good = [], len(lines[0]) + 1
        for line in lines[1:]:
            piece = _json(line)
            if not (isinstance(piece, list) and len(piece) == 3 and all(type(n) is int for n in piece)):
                break
            pieces.append(Piece(*piece))
            good += len(line) + 1
        self._file.truncate(good)  # what is added must not continue a torn line
        return pieces, ""

    def begin(self) -> None:
        """Note that this output is being made, nothing of it yet.

        Raises:
            OSError: the disk is full or broken.
        """
        self.forget()
        self._append({"journal": FORMAT, **self._fingerprint})

    def add(self, pieces: Sequence[Piece]) -> None:
        """Note pieces whose bytes are durable.

        Raises:
            OSError: the disk is full or broken; none of them is noted.
        """
        if pieces:
            self._append(*pieces)

    def forget(self) -> None:
        """Forget everything, so that closing removes the file."""
        self._file.truncate(0)

    def remove(self) -> None:
        """The output is whole: forget everything and close."""
        self.forget()
        self.close()

    def close(self) -> None:
        """Give the lock back; a journal that holds nothing is removed."""
        if self._file.closed:
            return
        if self._file.seek(0, os.SEEK_END):
            self._locked.close()
        else:
            self._locked.remove()

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _append(self, *values: Any) -> None:
        lines = b"".join(json.dumps(value).encode("ascii") + b"\n" for value in values)
        end = self._file.seek(0, os.SEEK_END)
        try:
            if self._file.write(lines) < len(lines):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            durable(self._file)
        except OSError:
            with contextlib.suppress(OSError):
                self._file.truncate(end)
            raise


def _json(line: bytes) -> Any:
    """The value of a line, None where the line is torn, or holds the zeros of a disk that lost power."""
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None
