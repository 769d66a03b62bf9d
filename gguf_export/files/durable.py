"""A large file that is written in pieces, anywhere in it, by several threads, while the disk catches up behind them."""

from __future__ import annotations

import contextlib
import os
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from gguf_export.files.disk import durable, forget_pages
from gguf_export.files.opening import file_id, is_there, open_again, open_new, refuse_gone
from gguf_export.files.sizes import size_in_words
from quantize.exceptions import NoSpaceError, OutputError, is_full
from quantize.telling import OnProgress, Progress, silent
from quantize.tracing import span

__all__ = ["DurableFile", "Piece", "confirmed", "disk_errors"]

SYNC_BYTES = 64 * 2**20
SYNC_SECONDS = 5.0
"""After this many bytes or seconds, what was written is made durable, while the writers go on."""

MOST_UNSYNCED = 4 * SYNC_BYTES
"""Bytes after which a writer waits for a slow disk: about the most that a killed run loses."""

READ_BYTES = 2**20  # read back at a time


class Piece(NamedTuple):
    """Some bytes of a file."""

    offset: int  # from the start of the file
    n_bytes: int
    crc: int  # zlib.crc32


class DurableFile:
    """A file of known size; its pieces are made durable, and then noted, by a thread of its own.

    Pieces that are not durable yet are lost where it is closed without `sync`.
    """

    def __init__(
        self, path: Path, n_bytes: int, *, goes_on: bool, on_durable: Callable[[Sequence[Piece]], None]
    ) -> None:
        """Open the file.

        Args:
            path: of the file.
            n_bytes: its size when it is whole.
            goes_on: keep what is in it; otherwise it is created, in the place of a file that is there.
            on_durable: is told the pieces that the disk holds, each once; an `OSError` from it counts as one of the
                disk. Called from the thread that syncs.

        Raises:
            OutputError: the file cannot be opened, or something other than a plain file is there.
        """
        self.path, self.n_bytes = path, n_bytes
        self._on_durable = on_durable
        self._lock, self._sync_lock = threading.Lock(), threading.Lock()
        self._syncer = ThreadPoolExecutor(1, "sync")  # starts its thread when it has something to do
        self._syncing: Future[None] | None = None
        self._broken: OSError | None = (
            None  # since this error it is unknown what the disk holds of what was written
        )
        self._unsynced: list[Piece] = []
        self._unsynced_bytes = 0
        self._synced_at = time.monotonic()
        with self._errors():
            self._file: Any = open_again(path) if goes_on else open_new(path)
            self.identity = file_id(os.fstat(self._file.fileno()))

    @property
    def is_there(self) -> bool:
        """Whether its name still leads to this file, which may be closed."""
        return is_there(self.identity, self.path)

    def frame(self, pieces: Sequence[tuple[int, bytes]]) -> None:
        """Give the file its size, and put bytes at offsets without noting them.

        Raises:
            OutputError: the disk is full or broken.
        """
        with self._errors():
            self._file.truncate(self.n_bytes)
            for offset, data in pieces:
                self._put(offset, memoryview(data))

    def write(self, offset: int, data: memoryview) -> None:
        """Put a piece at an offset; when it is durable, `on_durable` is told.

        Raises:
            OutputError: the disk is full or broken.
        """
        with span("checksum"):
            piece = Piece(offset, data.nbytes, zlib.crc32(data))
        with self._errors():
            self._put(offset, data)
        with self._lock:
            self._unsynced.append(piece)
            self._unsynced_bytes += piece.n_bytes
            is_due = self._unsynced_bytes >= SYNC_BYTES or time.monotonic() - self._synced_at >= SYNC_SECONDS
        if is_due:
            self._sync_behind()

    def take(self, pieces: Sequence[Piece]) -> None:
        """Note pieces that somebody else has put into this file, and that are durable (`files.shared_file`).

        They are noted together with others, so that a note is not waited for by each.

        Raises:
            OutputError: the disk is full or broken.
        """
        with self._lock:
            self._unsynced += pieces
            is_due = time.monotonic() - self._synced_at >= SYNC_SECONDS
        if is_due:
            self._sync_behind()

    def sync(self) -> None:
        """Make the remaining pieces durable, in the caller's thread; nothing is written meanwhile.

        Raises:
            OutputError: the disk is full or broken, or the file was removed or replaced.
        """
        if self._file.closed:
            return
        try:
            if self._syncing is not None:
                self._syncing.result()
        finally:
            self._sync()

    def close(self) -> None:
        """Close the file, when a sync that is under way has ended.

        Raises:
            OutputError: the disk is broken.
        """
        self._syncer.shutdown()
        with self._errors():
            self._file.close()

    def rename(self, path: Path) -> None:
        """Close the file and give it another name, which it gets only if it is still what its own name leads to.

        Raises:
            OutputError: it was removed or replaced, or the name cannot be given.
        """
        self.close()
        refuse_gone(self.identity, self.path)
        with self._errors():
            self.path.replace(path)

    def _put(self, offset: int, data: memoryview) -> None:
        if not hasattr(os, "pwrite"):
            with self._lock:  # on Windows a file has one position for all threads
                self._file.seek(offset)
                while data:
                    data = data[self._file.write(data) :]
        while data:
            n_bytes = os.pwrite(self._file.fileno(), data, offset)
            data, offset = data[n_bytes:], offset + n_bytes

    def _sync_behind(self) -> None:
        """Sync in the thread for it; wait only for a disk that is slower than the writers."""
        with self._sync_lock:
            if self._syncing is not None:
                if not self._syncing.done() and self._unsynced_bytes < MOST_UNSYNCED:
                    return
                self._syncing.result()
            self._syncing = self._syncer.submit(self._sync)

    def _sync(self) -> None:
        """First the bytes, then the note that tells of them; writers do not wait meanwhile."""
        with self._errors():
            with self._lock:
                pieces, self._unsynced, self._unsynced_bytes = self._unsynced, [], 0
                self._synced_at = time.monotonic()
            try:
                if (
                    self._broken is not None
                ):  # a second fsync would return well: a disk tells of an error once
                    raise OSError(*self._broken.args)
                with span("fsync", file=self.path.name):
                    durable(self._file)
                with span("forget pages", file=self.path.name):
                    forget_pages(self._file)
                refuse_gone(self.identity, self.path)  # told now, and not when all is done
                with span("journal", file=self.path.name, pieces=len(pieces)):
                    self._on_durable(pieces)
            except OSError as error:
                self._broken = self._broken or error
                raise

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        with disk_errors(self.path, self.n_bytes):
            yield


@contextlib.contextmanager
def disk_errors(path: Path, n_bytes: int) -> Iterator[None]:
    """Turn an `OSError` within the block into this project's error for a file of `n_bytes` that is being written.

    Raises:
        NoSpaceError: the disk is full.
        OutputError: the disk is broken, or the folder does not allow it.
    """
    try:
        yield
    except OSError as error:
        if is_full(error):
            raise NoSpaceError(
                str(path),
                f"no space left ({error.strerror}) for a file of {size_in_words(n_bytes)}",
                "make space and start the run again with the same settings, or choose another folder",
            ) from error
        raise OutputError(
            str(path),
            f"cannot be written: {error.strerror or error}",
            "see to the disk, then start the run again with the same settings",
        ) from error


def confirmed(path: Path, pieces: Sequence[Piece], progress: OnProgress = silent) -> list[Piece]:
    """The pieces of a file whose bytes are still those that were written, read back by their checksums.

    Raises:
        OSError: the file cannot be read.
    """
    if not pieces:
        return []
    intact = []
    total = sum(piece.n_bytes for piece in pieces)
    done = 0
    with path.open("rb", buffering=0) as file:
        for piece in pieces:
            file.seek(piece.offset)
            crc, left = 0, piece.n_bytes
            while left and (data := file.read(min(left, READ_BYTES))):
                crc, left = zlib.crc32(data, crc), left - len(data)
            if not left and crc == piece.crc:
                intact.append(piece)
            done += piece.n_bytes
            progress(Progress("checking what is done", done, total))
    return intact
