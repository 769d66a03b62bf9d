"""What of an output is on the disk, so that a run that was stopped, however it was, goes on where it stopped.

`NAME.gguf.journal` lies beside `NAME.gguf.partial`. It holds lines of JSON: first the fingerprint of what is being
made, then `[offset, n_bytes, crc32]` for each piece of the file. A piece is noted after its bytes have reached the
disk, never before, and on the way back nothing is believed that its checksum does not confirm: a torn line or a disk
that lost power costs work, not truth.

The operating system locks the journal for the run that writes it and for no longer, since a lock dies with its process:
two runs cannot write the same output.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from gguf_export.files.disk import LockedError, durable, lock, still_at
from quantize.exceptions import OutputError

__all__ = ["Journal", "Piece", "journal_path"]

SUFFIX = ".journal"
FORMAT = 1
MAX_BYTES = 2**26  # of a journal that is read; that of a model of a terabyte takes a few megabytes


class Piece(NamedTuple):
    """Bytes of a file that are on the disk."""

    offset: int  # from the start of the file
    n_bytes: int
    crc: int  # zlib.crc32


def journal_path(output: Path) -> Path:
    """Where the journal of an output lies."""
    return output.with_name(output.name + SUFFIX)


class Journal:
    """The journal of one output, open and locked; a context manager that leaves no empty journal behind."""

    def __init__(self, output: Path, fingerprint: Mapping[str, str]) -> None:
        """Open and lock it; what an earlier run left in it stays until `recall` or `begin`.

        Args:
            output: the final path of the file.
            fingerprint: all that decides the file's bytes, by names that a person understands.

        Raises:
            OutputError: another run is writing this output, or the folder cannot be written.
        """
        self.path = journal_path(output)
        self._fingerprint = dict(fingerprint)
        try:
            self._file, self.is_locked = self._open(output)
        except OSError as error:
            raise OutputError(f"{self.path}: cannot be written: {error.strerror or error}") from error

    def _open(self, output: Path) -> tuple[Any, bool]:
        while True:
            # Unbuffered, so that what could not be written is not tried again when the file is closed.
            file = self.path.open("a+b", buffering=0)
            try:
                is_locked = lock(file)
                if still_at(file, self.path):
                    return file, is_locked
            except LockedError:
                file.close()
                raise OutputError(
                    f"{output}: another run is writing this file; wait for it, or choose another folder with -o"
                ) from None
            except BaseException:
                file.close()
                raise
            file.close()  # the run before ended and removed it between the opening and the locking

    def recall(self) -> tuple[list[Piece], str]:
        """The pieces that an earlier run noted, and, where it made something else, what differs.

        The latter is a phrase such as "the checkpoint is another", empty where there was no earlier run.
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
        names = first.keys() | self._fingerprint.keys()
        changed = sorted(name for name in names if first.get(name) != self._fingerprint.get(name))
        if changed:
            return [], f"{' and '.join(f'the {name}' for name in changed)} changed since it was stopped"
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
            self._file.close()
            return
        with contextlib.suppress(OSError):  # Windows removes no open file; then it goes one line further down
            self.path.unlink(missing_ok=True)
        self._file.close()
        if os.name == "nt":
            with contextlib.suppress(OSError):
                self.path.unlink(missing_ok=True)

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
    """The value of a line, None where it is none: torn, or zeros of a disk that lost power."""
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None
