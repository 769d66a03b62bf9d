"""The output file: declared whole by a plan, then filled with slabs at their offsets in any order.

Behind the header lie the tensors one behind the other, each padded to the alignment. llama.cpp accepts no gaps and no
other order (ggml/src/gguf.cpp), so every offset is known before the first weight is read.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
import time
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

from gguf_export.files.disk import durable, durable_folder, forget_pages
from gguf_export.metadata.model_keys import KeyValue
from gguf_export.writing.header import header
from gguf_export.writing.journal import Journal, Piece
from quantize.exceptions import OutputError
from quantize.recipes.layout import Plan, PlannedTensor, padded
from quantize.telling import Note, OnProgress, Progress, discard, silent
from quantize.tensors import Array

PARTIAL_SUFFIX = ".partial"

SYNC_BYTES = 64 * 2**20
SYNC_SECONDS = 5.0
"""After so many bytes or seconds, what was written is made durable and noted, while the encoding goes on."""

MOST_UNSYNCED = 4 * SYNC_BYTES
"""Bytes after which a writer waits for a slow disk: about the most that a killed run loses."""

READ_BYTES = 2**20  # read back at a time


class Sink:
    """One GGUF file in the making: `name.partial` until `commit` gives it its name.

    Slabs may come from several threads. It is a context manager: entered, it creates the partial file, or goes on with
    the one of an earlier run; left before `commit`, it keeps what a journal knows of, and otherwise removes the file.
    """

    def __init__(
        self,
        path: Path,
        keys: Sequence[KeyValue],
        plan: Plan,
        journal: Journal | None = None,
        *,
        note: Note = discard,
        progress: OnProgress = silent,
    ) -> None:
        """Look at what an earlier run left; nothing is written yet.

        Args:
            path: the final name.
            keys: metadata.
            plan: all tensors.
            journal: remembers what is done, for a run that is stopped; the caller closes it.
            note: told what is continued and what is not, and why.
            progress: called while what is done is read back.

        Raises:
            OutputError: the partial file cannot be read.
        """
        self.path = path
        self.partial = path.with_name(path.name + PARTIAL_SUFFIX)
        self._header = header(keys, plan)
        self.plan = plan
        self.n_bytes = len(self._header) + plan.data_bytes
        self._journal, self._note, self._progress = journal, note, progress
        self._file: Any = None
        self._lock, self._sync_lock = threading.Lock(), threading.Lock()
        self._syncer = ThreadPoolExecutor(1)  # starts its thread when it has something to do
        self._syncing: Future[None] | None = None
        self._is_broken = False  # nobody knows what the disk has of what was written since the last sync
        self._done: dict[int, int] = {}  # bytes of each piece that is written, by its offset
        self._unsynced: list[Piece] = []
        self._unsynced_bytes = 0
        self._synced_at = time.monotonic()
        self.is_whole = False
        """The file stands under its name: committed, or by a run that was stopped on its last steps."""
        with self._errors():
            self._recall()

    @property
    def done_bytes(self) -> int:
        """Bytes of tensors that are written."""
        return sum(self._done.values())

    def has(self, tensor: PlannedTensor, offset: int, n_bytes: int) -> bool:
        """Whether `write` had exactly these bytes, in this run or in the one that it continues."""
        return self.is_whole or self._done.get(self._place(tensor, offset)) == n_bytes

    def write(self, tensor: PlannedTensor, offset: int, slab: Array) -> None:
        """Put bytes at `offset` from the start of a tensor.

        Raises:
            OutputError: the disk is full or broken.
            ValueError: the slab does not lie within the tensor.
        """
        if offset < 0 or offset + slab.nbytes > tensor.n_bytes:
            raise ValueError(
                f"{tensor.spec.name}: slab of {slab.nbytes} bytes at {offset} of {tensor.n_bytes}"
            )
        place, data = self._place(tensor, offset), slab.data.cast("B")
        piece = Piece(place, slab.nbytes, zlib.crc32(data))
        with self._errors(), self._lock:
            self._put(place, data)
            self._done[place] = slab.nbytes
            self._unsynced.append(piece)
            self._unsynced_bytes += slab.nbytes
            is_due = self._unsynced_bytes >= SYNC_BYTES or time.monotonic() - self._synced_at >= SYNC_SECONDS
        if is_due:
            self._sync_behind()

    def finish(self) -> None:
        """Make all that was written durable, and noted.

        Raises:
            OutputError: the disk is full or broken.
            ValueError: something of the plan was not written.
        """
        if self.is_whole:
            return
        if self.done_bytes != self.plan.n_bytes:
            raise ValueError(f"{self.path}: {self.done_bytes} bytes written of {self.plan.n_bytes}")
        self._sync_rest()

    def commit(self) -> None:
        """`finish`, and give the file its name, durably.

        Raises:
            OutputError: the disk is full or broken; nothing appears under the final name.
            ValueError: something of the plan was not written.
        """
        if self.is_whole:
            return
        self.finish()
        self._syncer.shutdown()
        with self._errors():
            self._file.close()
            self.partial.replace(self.path)
            self.is_whole = True
            durable_folder(self.path.parent)

    def discard(self) -> None:
        """Keep nothing of the partial file: what it is made from is bad."""
        self._done.clear()

    def __enter__(self) -> Sink:
        if not self.is_whole:
            try:
                with self._errors():
                    self._continue() if self._done else self._create()
            except BaseException:
                self.__exit__(None, None, None)
                raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.is_whole or self._file is None:
            return
        if self._journal is not None:
            # A disk that is full or broken was reported already, by the write that met it.
            with contextlib.suppress(OutputError):
                self._sync_rest()
        self._syncer.shutdown()
        self._file.close()
        if self._journal is not None and self._done:
            self._note(
                f"{self.path.name}: {_size(self.done_bytes)} of {_size(self.plan.n_bytes)} are done and kept in "
                f"{self.partial.name}; the same command goes on from there"
            )
            return
        self.partial.unlink(missing_ok=True)
        if self._journal is not None:
            self._journal.forget()

    def _recall(self) -> None:
        """Find out what of an earlier run can be used: the pieces that their checksums confirm."""
        if self._journal is None:
            return
        pieces, differs = self._journal.recall()
        renamed = not self.partial.exists()  # the last step of a run, which its journal outlives by a moment
        found = self.path if renamed else self.partial
        if pieces and (not found.exists() or found.stat().st_size != self.n_bytes):
            pieces, differs = [], f"{self.partial.name} is gone or was changed"
        good = {piece.offset: piece.n_bytes for piece in self._confirmed(found, pieces)}
        if not renamed:
            self._done = good
        elif pieces:
            self.is_whole = sum(good.values()) == self.plan.n_bytes and self._has_header(found)
            differs = "" if self.is_whole else f"{self.partial.name} is gone"
        if differs:
            self._note(f"{self.path.name}: begun afresh, because {differs}")
        elif len(good) < len(pieces):
            self._note(
                f"{self.path.name}: {len(pieces) - len(good)} of {len(pieces)} pieces that were done do not match "
                "their checksums and are made again"
            )

    def _has_header(self, path: Path) -> bool:
        with path.open("rb") as file:
            return file.read(len(self._header)) == self._header

    def _confirmed(self, path: Path, pieces: Sequence[Piece]) -> Iterator[Piece]:
        """The pieces whose bytes are still what was written."""
        if not pieces:
            return
        total = sum(piece.n_bytes for piece in pieces)
        done = 0
        with path.open("rb", buffering=0) as file:
            for piece in pieces:
                if len(self._header) <= piece.offset <= piece.offset + piece.n_bytes <= self.n_bytes:
                    file.seek(piece.offset)
                    crc, left = 0, piece.n_bytes
                    while left and (data := file.read(min(left, READ_BYTES))):
                        crc, left = zlib.crc32(data, crc), left - len(data)
                    if not left and crc == piece.crc:
                        yield piece
                done += max(0, piece.n_bytes)
                self._progress(Progress("checking what is done", done, total))

    def _create(self) -> None:
        # Never a journal that tells of a file that is not there: it is emptied first and begun last.
        if self._journal is not None:
            self._journal.forget()
        self._file = self.partial.open("w+b", buffering=0)
        self._announce()
        if self._journal is not None:
            self._journal.begin()

    def _continue(self) -> None:
        self._file = self.partial.open("r+b", buffering=0)
        self._announce()
        self._note(
            f"{self.path.name}: continued, {_size(self.done_bytes)} of {_size(self.plan.n_bytes)} are done"
        )

    def _announce(self) -> None:
        """All bytes that are not weights: the header, the length, the padding."""
        self._put(0, memoryview(self._header))
        self._file.truncate(self.n_bytes)
        for tensor in self.plan.tensors:
            end = len(self._header) + tensor.offset + tensor.n_bytes
            self._put(end, memoryview(bytes(padded(tensor.n_bytes) - tensor.n_bytes)))

    def _place(self, tensor: PlannedTensor, offset: int) -> int:
        return len(self._header) + tensor.offset + offset

    def _put(self, place: int, data: memoryview) -> None:
        self._file.seek(place)
        while data:
            data = data[self._file.write(data) :]

    def _sync_behind(self) -> None:
        """Sync in a thread of its own; wait only for a disk that is slower than the encoding."""
        with self._sync_lock:
            if self._syncing is not None:
                if not self._syncing.done() and self._unsynced_bytes < MOST_UNSYNCED:
                    return
                self._syncing.result()
            self._syncing = self._syncer.submit(self._sync)

    def _sync_rest(self) -> None:
        """Sync what is left, here; nobody writes any more."""
        try:
            if self._syncing is not None:
                self._syncing.result()
        finally:
            self._sync()

    def _sync(self) -> None:
        """First the bytes, then the journal that tells of them; writers do not wait meanwhile."""
        with self._errors():
            with self._lock:
                pieces, self._unsynced, self._unsynced_bytes = self._unsynced, [], 0
                self._synced_at = time.monotonic()
            try:
                if self._is_broken:  # a second fsync would return well: a disk tells of an error once
                    raise OSError(errno.EIO, os.strerror(errno.EIO))
                durable(self._file)
                forget_pages(self._file)
                if self._journal is not None:
                    self._journal.add(pieces)
            except OSError:
                self._is_broken = True
                for piece in pieces:
                    self._done.pop(piece.offset, None)
                raise

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise OutputError(
                    f"{self.partial}: no space left ({error.strerror}) for a file of {_size(self.n_bytes)}; make space "
                    "and run the same command again, or choose another folder with -o"
                ) from error
            raise OutputError(
                f"{self.partial}: cannot be written: {error.strerror or error}; see to the disk, then run the same "
                "command again"
            ) from error


def _size(n_bytes: int) -> str:
    return f"{n_bytes / 2**30:.2f} GiB" if n_bytes >= 2**30 else f"{n_bytes / 2**20:.2f} MiB"
