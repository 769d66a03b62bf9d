"""The output file: declared whole by a plan, then filled with slabs at their offsets in any order.

Behind the header lie the tensors one behind the other, each padded to the alignment. llama.cpp accepts no gaps and no
other order (ggml/src/gguf.cpp), so every offset is known before the first weight is read.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import numpy as np

from gguf_export.files.disk import allocated, durable_folder
from gguf_export.files.durable import DurableFile, Piece, confirmed, disk_errors
from gguf_export.files.opening import FileId, identity_of, plain_size, refuse_strange
from gguf_export.files.replacing import partial_path
from gguf_export.files.shared_file import SharedFile
from gguf_export.files.sizes import size_in_words
from gguf_export.writing.journal import Journal
from quantize.exceptions import OutputError
from quantize.recipes.layout import Plan, PlannedTensor, padded
from quantize.telling import Note, OnProgress, Remark, discard, silent
from quantize.tensors import Array


class Sink:
    """One GGUF file in the making: `name.partial` until `commit` gives it its name.

    Several threads may write slabs. A sink is a context manager: entered, it creates the partial file, or goes on with
    the pieces that `recall` confirmed; left before `commit`, it keeps the pieces that a journal knows of, and otherwise
    removes the file.
    """

    def __init__(
        self,
        path: Path,
        header: bytes,
        plan: Plan,
        journal: Journal | None = None,
        *,
        note: Note = discard,
    ) -> None:
        """Declare the file; nothing is read or written yet.

        Args:
            path: the final name.
            header: the bytes before the first tensor.
            plan: all tensors.
            journal: remembers what is done, for a run that is stopped; the caller closes it.
            note: receives remarks: that the file is continued, or begun afresh and why, and what of it is kept.
        """
        self.path, self.partial = path, partial_path(path)
        self.plan = plan
        self._header = header
        self.n_bytes = len(self._header) + plan.data_bytes
        self._journal, self._note = journal, note
        self._file: DurableFile | None = None
        self._done: dict[int, int] = {}  # bytes of each piece that is written, by its offset
        self._recalled: FileId | None = None  # the file in which these were found
        self._noted_bytes = 0  # of the pieces that the journal knows of
        self._is_discarded = False
        self.is_whole = False
        """The file stands under its name: committed, or by a run that was stopped on its last steps."""

    @property
    def done_bytes(self) -> int:
        """Bytes of tensors that are written."""
        return sum(self._done.values())

    @property
    def is_done(self) -> bool:
        """Whether nothing of it is left to be written."""
        return self.is_whole or self.done_bytes == self.plan.n_bytes

    @property
    def lacking_bytes(self) -> int:
        """Bytes of the disk that the file still needs."""
        return 0 if self.is_whole else max(0, self.n_bytes - allocated(self.partial))

    def recall(self, progress: OnProgress = silent) -> None:
        """Look for the pieces of an earlier run that can be used: those that their checksums confirm.

        Args:
            progress: called while they are read back.

        Raises:
            OutputError: the partial file cannot be read, or is no plain file.
        """
        refuse_strange(self.partial)
        if self._journal is None:
            return
        with disk_errors(self.partial, self.n_bytes):
            self._recall(self._journal, progress)

    def _recall(self, journal: Journal, progress: OnProgress) -> None:
        pieces, differs = journal.recall()
        # Getting its name is a file's last step, which its journal outlives by a moment.
        was_renamed = not self.partial.exists()
        path = self.path if was_renamed else self.partial
        if pieces and plain_size(path) != self.n_bytes:
            pieces, differs = [], f"{self.partial.name} is gone or was changed"
        self._recalled = identity_of(path)
        within = [piece for piece in pieces if self._is_within(piece)]
        intact = {piece.offset: piece.n_bytes for piece in confirmed(path, within, progress)}
        if not was_renamed:
            self._done, self._noted_bytes = intact, sum(intact.values())
        elif pieces:
            self.is_whole = sum(intact.values()) == self.plan.n_bytes and self._has_header(path)
            differs = "" if self.is_whole else f"{self.partial.name} is gone"
        elif not self.plan.tensors and plain_size(path) == self.n_bytes:
            self.is_whole = self._has_header(path)  # a part without tensors has no pieces
        if differs:
            self._say(f"begun afresh, because {differs}")
        elif len(intact) < len(pieces):
            self._say(
                f"{len(pieces) - len(intact)} of {len(pieces)} pieces that were done do not match their checksums and "
                "are made again"
            )

    def _is_within(self, piece: Piece) -> bool:
        return len(self._header) <= piece.offset <= piece.offset + piece.n_bytes <= self.n_bytes

    def _has_header(self, path: Path) -> bool:
        with path.open("rb") as file:
            return file.read(len(self._header)) == self._header

    def place(self, tensor: PlannedTensor, offset: int) -> int:
        """Where bytes at `offset` from the start of a tensor lie in the file."""
        return len(self._header) + tensor.offset + offset

    def has(self, tensor: PlannedTensor, offset: int, n_bytes: int) -> bool:
        """Whether exactly these bytes were written, in this run or in the one that it continues."""
        return self.is_whole or self._done.get(self.place(tensor, offset)) == n_bytes

    def write(self, tensor: PlannedTensor, offset: int, slab: Array) -> None:
        """Put bytes at `offset` from the start of a tensor.

        Raises:
            OutputError: the disk is full or broken.
            ValueError: the slab does not lie within the tensor.
        """
        if offset < 0 or offset + slab.nbytes > tensor.n_bytes:
            raise ValueError(f"{tensor.name}: slab of {slab.nbytes} bytes at {offset} of {tensor.n_bytes}")
        place = self.place(tensor, offset)
        self._opened.write(place, slab.data.cast("B"))
        self._done[place] = slab.nbytes

    def shared(self) -> SharedFile:
        """The file as other processes write to it, after its header and length are durable.

        Raises:
            OutputError: see `sync`.
        """
        self.sync()
        return SharedFile(self.partial.absolute(), self.n_bytes, self._opened.identity[1])

    def take(self, pieces: Sequence[Piece]) -> None:
        """Note pieces that other processes have written to the `shared` file, durably.

        Raises:
            OutputError: the disk is full or broken.
        """
        self._opened.take(pieces)
        self._done.update((piece.offset, piece.n_bytes) for piece in pieces)

    def read(self, tensor: PlannedTensor, offset: int, n_bytes: int) -> Array:
        """Bytes that were written at `offset` from the start of a tensor: uint8 [n_bytes].

        Raises:
            OutputError: the file cannot be read any more.
        """
        with disk_errors(self.partial, self.n_bytes):
            path = self.path if self.is_whole else self.partial
            return np.fromfile(path, np.uint8, n_bytes, offset=self.place(tensor, offset))

    def sync(self) -> None:
        """Make everything that was written so far durable, and note it.

        Raises:
            OutputError: the disk is full or broken, or the file was removed or replaced.
        """
        if not self.is_whole:
            self._opened.sync()

    def finish(self) -> None:
        """Make everything that was written durable, note it, and see to it that the file can get its name.

        Raises:
            OutputError: the disk is full or broken, the file was removed or replaced, or a folder has its name.
            ValueError: something of the plan was not written.
        """
        if self.is_whole:
            return
        if not self.is_done:
            raise ValueError(f"{self.path}: {self.done_bytes} bytes written of {self.plan.n_bytes}")
        self._opened.sync()
        if self.path.is_dir() and not self.path.is_symlink():
            raise OutputError(
                str(self.path),
                "a folder was put under the name of the file while it was written",
                "remove it, then start the run again with the same settings",
            )

    def commit(self) -> None:
        """`finish`, and give the file its name, durably; a link under that name is replaced, not followed.

        Raises:
            OutputError: the disk is full or broken, or see `finish`; nothing appears under the final name.
            ValueError: something of the plan was not written.
        """
        if self.is_whole:
            return
        self.finish()
        self._opened.rename(self.path)
        self.is_whole = True
        with disk_errors(self.path, self.n_bytes):
            durable_folder(self.path.parent)

    def leave(self) -> None:
        """Leave the file that stands under its name, and keep nothing of another one."""
        self.is_whole = True
        if self._journal is not None:
            self._journal.forget()
        with contextlib.suppress(OSError):
            self.partial.unlink(missing_ok=True)

    def discard(self) -> None:
        """Keep nothing of the partial file, because its source is damaged."""
        self._is_discarded = True

    def __enter__(self) -> Sink:
        if self.is_whole:
            return self
        try:
            if self._done:
                self._continue()
            else:
                self._create()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.is_whole or self._file is None:
            return
        is_kept = self._journal is not None and not self._is_discarded
        # A disk that is full or broken was reported already, by the write that met it; that error is the one to tell.
        with contextlib.suppress(OutputError):
            if is_kept:
                self._file.sync()
        with contextlib.suppress(OutputError):
            self._file.close()
        is_there = self._file.is_there  # another's file is neither removed nor called ours
        is_known = self._journal is not None and self._journal.is_there
        if is_kept and self._noted_bytes and is_there and is_known:
            self._say(
                f"{size_in_words(self._noted_bytes)} of {size_in_words(self.plan.n_bytes)} are done and kept in "
                f"{self.partial.name}",
                "the same command goes on from there",
            )
            return
        with contextlib.suppress(OSError):
            if is_there:
                self.partial.unlink()
            if self._journal is not None:
                self._journal.forget()

    @property
    def _opened(self) -> DurableFile:
        if self._file is None:
            raise ValueError(f"{self.path}: is not open")
        return self._file

    def _create(self) -> None:
        # A journal never tells of a file that is not there: it is emptied first and begun last.
        with disk_errors(self.partial, self.n_bytes):
            if self._journal is not None:
                self._journal.forget()
            self._open(goes_on=False)
            if self._journal is not None:
                self._journal.begin()

    def _continue(self) -> None:
        self._open(goes_on=True)
        if self._opened.identity != self._recalled:  # reading it back may have taken minutes
            raise OutputError(
                str(self.partial), "was replaced by something else while it was read", "start the run again"
            )
        done, total = size_in_words(self.done_bytes), size_in_words(self.plan.n_bytes)
        self._say(f"continued, {done} of {total} are done")

    def _open(self, *, goes_on: bool) -> None:
        """Open the file and write all bytes that are not weights: the header, the length, the padding."""
        self._file = DurableFile(self.partial, self.n_bytes, goes_on=goes_on, on_durable=self._note_pieces)
        ends = (
            (self.place(tensor, tensor.n_bytes), bytes(padded(tensor.n_bytes) - tensor.n_bytes))
            for tensor in self.plan.tensors
        )
        self._file.frame([(0, self._header), *ends])

    def _note_pieces(self, pieces: Sequence[Piece]) -> None:
        if self._journal is not None:
            self._journal.add(pieces)
        self._noted_bytes += sum(piece.n_bytes for piece in pieces)

    def _say(self, message: str, remedy: str = "") -> None:
        self._note(Remark(self.path.name, message, remedy))
