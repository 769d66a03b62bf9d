"""What tells one model from another without comparing all weights, and shows that its files changed on the way."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from quantize.exceptions import ModelChangedError, MoeGgufError

__all__ = ["SeenFiles", "hashed"]

N_SAMPLE, SAMPLE_BYTES = 16, 4096
"""What is read of a large file for its fingerprint: 64 KiB, spread evenly, the first bytes and the last among them."""

Stamp = tuple[int, int, int]


def hashed(parts: Iterable[bytes]) -> str:
    """A hash of some bytes, and of where one part ends and the next begins."""
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()


class SeenFiles:
    """Files as they were when a model was opened; others in their place, and other bytes in them, are noticed.

    A file is known by its size, the time of its content (mtime) and the time of its last change of any kind (ctime).
    Copies and downloads may set the former as they like, the latter is the system's own: it tells of files that were
    renamed, linked or written over. Numbers of inodes would add nothing, and FAT and FUSE give new ones while a file is
    not open.
    """

    def __init__(self, paths: Iterable[Path], error: type[MoeGgufError]) -> None:
        """Look at the files, before they are read.

        Args:
            paths: of the files; one that is not there must not appear.
            error: is raised where a file cannot be read.
        """
        self._error = error
        self._stamps = {path: _stamp_at(path) for path in paths}

    def see(self, path: Path) -> None:
        """Look at one more file, before it is read."""
        self._stamps[path] = _stamp_at(path)

    def keep(self, paths: Iterable[Path]) -> None:
        """Forget all files but these, which were found to be those of the model."""
        self._stamps = {path: self._stamps.get(path) for path in paths}

    def confirm(self, path: Path, handle: int) -> None:
        """Compare an open file, of which something was just read, with the one that was seen.

        Raises:
            ModelChangedError: it is another one, or it was written to: what was read may be of either.
        """
        if _stamp(os.fstat(handle)) != self._stamps[path]:
            raise _changed(path)

    def refuse_changed(self) -> None:
        """Look at all files again.

        Raises:
            ModelChangedError: one of them is not the one that was seen.
        """
        for path, stamp in self._stamps.items():
            if _stamp_at(path) != stamp:
                raise _changed(path)

    def fingerprint(self) -> Iterator[bytes]:
        """What decides whether these are the files of an earlier run: names, stamps, and samples of the content.

        A file that was copied, and one whose rights were changed, are other files, for nothing short of reading them
        shows that they are not: a run that begins afresh costs its time, one that goes on with other weights its
        result. The samples stand in where a system gives no ctime (Windows, FAT, FUSE).

        Raises:
            ModelChangedError: one of them is not the one that was seen.
            MoeGgufError: one cannot be read any more; of the class that was given.
        """
        for path, stamp in sorted(self._stamps.items()):
            yield os.fsencode(path.name) + f" {stamp}".encode()  # a name may be any bytes
            if stamp is not None:
                yield from self._samples(path, stamp[0])

    def _samples(self, path: Path, size: int) -> Iterator[bytes]:
        try:
            with path.open("rb", buffering=0) as file:
                for i in range(N_SAMPLE):
                    file.seek(max(0, size - SAMPLE_BYTES) * i // (N_SAMPLE - 1))
                    yield file.read(SAMPLE_BYTES)
                self.confirm(path, file.fileno())
        except OSError as failure:
            raise self._error(str(path), f"cannot be read: {failure.strerror}") from None


def _stamp(status: os.stat_result) -> Stamp:
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _stamp_at(path: Path) -> Stamp | None:
    try:
        return _stamp(path.stat())
    except OSError:
        return None


def _changed(path: Path) -> ModelChangedError:
    return ModelChangedError(
        str(path), "changed while it was read", "start again, and let nothing write to the model meanwhile"
    )
