"""The SHA-256 of files that are read anyway: what a check reads is hashed on the way, and only the rest is read."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from quantize.exceptions import GGUFError
from quantize.sources.fingerprint import SeenFiles
from quantize.tensors import Array

__all__ = ["FileHashes"]

READ_BYTES = 2**20


class FileHashes:
    """Hashes of files, advanced by what others read of them.

    A hash needs all bytes in their order. Gaps between pieces (headers, padding, tensors that nobody read) are read
    here, and a piece that comes a second time, or too late, is left out. So the hashes are right in whatever order the
    pieces come, and nothing is read twice where they come in file order.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        """Look at the files, before they are read."""
        self._seen = SeenFiles(paths, GGUFError)
        self._hashes = {path: hashlib.sha256() for path in paths}
        self._ends = dict.fromkeys(paths, 0)

    def take(self, path: Path, offset: int, piece: Array) -> None:
        """Hash what was read of a file.

        Args:
            path: of the file.
            offset: of the first byte in the file.
            piece: contiguous uint8 of any shape.

        Raises:
            GGUFError: the bytes before the piece cannot be read.
            ModelChangedError: the file is no longer the one that was seen.
        """
        if offset + piece.nbytes <= self._ends[path]:
            return
        self._read(path, offset)
        new = piece.data.cast("B")[self._ends[path] - offset :]
        self._hashes[path].update(new)
        self._ends[path] += len(new)

    def hexdigests(self) -> dict[Path, str]:
        """The SHA-256 of each file, hexadecimal; what is not hashed yet is read.

        Raises:
            GGUFError: a file cannot be read.
            ModelChangedError: a file is no longer the one that was seen.
        """
        for path in self._hashes:
            self._read(path, None)
        self._seen.refuse_changed()
        return {path: digest.hexdigest() for path, digest in self._hashes.items()}

    def _read(self, path: Path, end: int | None) -> None:
        """Hash the bytes up to `end`, or to that of the file, that nobody has taken."""
        if end is not None and end <= self._ends[path]:
            return
        try:
            with path.open("rb") as file:
                file.seek(self._ends[path])
                while end is None or self._ends[path] < end:
                    left = READ_BYTES if end is None else min(READ_BYTES, end - self._ends[path])
                    if not (data := file.read(left)):
                        break
                    self._hashes[path].update(data)
                    self._ends[path] += len(data)
                self._seen.confirm(path, file.fileno())
        except OSError as fault:
            raise GGUFError(str(path), f"cannot be read: {fault.strerror}") from None
