"""The outputs of an export while they are made: locked, opened, filled with blocks, and given their names together."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from gguf_export.files.disk import check_space
from gguf_export.files.outputs import refuse_existing, refuse_outputs
from gguf_export.writing import fingerprint, slabs
from gguf_export.writing.job import ExportJob
from gguf_export.writing.journal import Journal, journal_path
from gguf_export.writing.results import Seconds
from gguf_export.writing.sink import Sink
from gguf_export.writing.slabs import EncodedSlab, Slab
from quantize.exceptions import ActivationError, ModelChangedError, NotFiniteError, OutputError
from quantize.recipes.layout import PlannedTensor
from quantize.telling import Note, OnProgress, Remark, discard, silent
from quantize.tensors import Array, QType

__all__ = ["OpenFiles", "opened"]


class OpenFiles:
    """The files of an export, open to take slabs; its methods may be called from several threads."""

    def __init__(self, sinks: Sequence[Sink]) -> None:
        self.sinks = tuple(sinks)
        self._targets: dict[str, list[tuple[Sink, PlannedTensor]]] = {}
        for sink in sinks:
            for planned in sink.plan.tensors:
                self._targets.setdefault(planned.spec.name, []).append((sink, planned))

    @property
    def lacking_bytes(self) -> int:
        """Bytes of the disk that the files still need."""
        return sum(sink.lacking_bytes for sink in self.sinks)

    def lacking(self, slab: Slab) -> list[tuple[Sink, PlannedTensor]]:
        """The files that do not have this slab yet, each with its tensor."""
        return [
            (sink, planned)
            for sink, planned in self._targets.get(slab.spec.name, ())
            if not sink.has(planned, slab.offset_in(planned), slab.n_row * planned.row_bytes)
        ]

    def types_for(self, slab: Slab) -> tuple[QType, ...]:
        """The types in which this slab is lacking, each once."""
        return tuple(dict.fromkeys(planned.qtype for _, planned in self.lacking(slab)))

    @property
    def are_whole(self) -> bool:
        """Whether all of them stand under their names, made by a run that was stopped on its last steps."""
        return all(sink.is_whole for sink in self.sinks)

    def read(self, name: str, offset: int, n_bytes: int) -> Array:
        """Bytes of a tensor of the source, as they lie in the first file that has it: uint8 [n_bytes].

        Raises:
            OutputError: the file cannot be read any more.
        """
        sink, planned = self._targets[name][0]
        return sink.read(planned, offset, n_bytes)

    def sync(self) -> None:
        """Make what was written so far durable.

        Raises:
            OutputError: see `Sink.sync`.
        """
        for sink in self.sinks:
            sink.sync()

    def finish(self) -> None:
        """Make everything that was written durable.

        Raises:
            OutputError, ValueError: see `Sink.finish`.
        """
        for sink in self.sinks:
            sink.finish()

    def write(self, encoded: EncodedSlab) -> Seconds:
        """Put the blocks of a slab into the files that lack it; returns what the slab took altogether.

        Raises:
            OutputError: the disk is full or broken.
        """
        started = time.perf_counter()
        slab = encoded.slab
        for sink, planned in self.lacking(slab):
            sink.write(planned, slab.offset_in(planned), encoded.blocks[planned.qtype])
        seconds = time.perf_counter() - started
        return Seconds(read=encoded.read_seconds, encode=encoded.encode_seconds, write=seconds)


@contextmanager
def opened(
    job: ExportJob,
    *,
    force: bool = False,
    restart: bool = False,
    imatrix_hash: str | None = None,
    beside: Path | None = None,
    progress: OnProgress = silent,
    note: Note = discard,
) -> Iterator[OpenFiles]:
    """The outputs of a job, locked and ready for slabs; they get their names when the block ends well.

    Args:
        job: the export.
        force: replace files that exist.
        restart: use nothing of an earlier run that was stopped.
        imatrix_hash: a hash of the source of the importances, where they are made only while the files are.
        beside: a file that the block writes when all slabs are in the files, before these get their names.
        progress: called while the work of an earlier run is read back.
        note: receives remarks: which files are continued, or begun afresh and why, and what of them is kept.

    Raises:
        OutputBusyError: another run is writing one of the files.
        OutputExistsError: a file exists already.
        NoSpaceError: the disk has no room for the files.
        OutputError: the folder cannot be written, or the disk is broken.
        ModelChangedError: the checkpoint changed meanwhile; nothing of the files is kept.
    """
    _make_folders(job)
    paths = [file.path for file in job.files]
    refuse_outputs([], made=paths, own=[journal_path(path) for path in paths])
    with ExitStack() as stack:
        journals = _lock(stack, job, imatrix_hash or fingerprint.of_imatrix(job.imatrix))
        sinks = _recalled(job, journals, restart, progress, note)
        if not force:
            _refuse_existing(sinks, journals)
            # One beside files that are done is of the run that made them: it was stopped before they got their names.
            if beside is not None and not all(sink.is_done for sink in sinks):
                refuse_existing([beside])
        check_space((sink.path.parent, sink.lacking_bytes) for sink in sinks)
        for sink in sinks:
            stack.enter_context(sink)
        files = OpenFiles(sinks)
        try:
            yield files
            job.source.refuse_changed()
        except (ActivationError, ModelChangedError, NotFiniteError):
            # The checkpoint is damaged, or what was made may be of two.
            for sink in sinks:
                sink.discard()
            raise
        # Everything is made durable before the first file gets its name: what is left then takes a moment.
        files.finish()
        for sink in sinks:
            sink.commit()
        for journal in journals:
            journal.remove()


def _make_folders(job: ExportJob) -> None:
    for folder in dict.fromkeys(file.path.parent for file in job.files):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(str(folder), f"cannot be made: {error.strerror}") from error


def _lock(stack: ExitStack, job: ExportJob, imatrix: str) -> list[Journal]:
    """The journal of each file. Every run locks them in the same order, so that one of two runs gets all of them."""
    checkpoint = job.source.fingerprint()
    journals: dict[Path, Journal] = {}
    for file in sorted(job.files, key=lambda file: file.path):
        told = fingerprint.of_output(
            file.header, file.plan, imatrix=imatrix, checkpoint=checkpoint, slab_bytes=slabs.SLAB_BYTES
        )
        journals[file.path] = stack.enter_context(Journal(file.path, told))
    return [journals[file.path] for file in job.files]


def _recalled(
    job: ExportJob, journals: Sequence[Journal], restart: bool, progress: OnProgress, note: Note
) -> list[Sink]:
    """A sink for each file, which knows what an earlier run has done of it."""
    if not all(journal.is_locked for journal in journals):
        place = str(job.files[0].path.parent)
        note(Remark(place, "locks are unknown here", "do not run the same export twice at once"))
    sinks = []
    for file, journal in zip(job.files, journals, strict=True):
        if restart:
            journal.forget()
        sink = Sink(file.path, file.header, file.plan, journal, note=note)
        sink.recall(progress)
        sinks.append(sink)
    return sinks


def _refuse_existing(sinks: Sequence[Sink], journals: Sequence[Journal]) -> None:
    """Refuse files that exist, except those that an earlier run of this job has made and not yet signed off.

    Where all files exist and only some have a journal, that run was stopped while it removed its journals. It had made
    all files, so the other journals go, too, and the files are refused like any others.
    """
    if all(sink.path.exists() for sink in sinks) and not all(sink.is_whole for sink in sinks):
        for sink, journal in zip(sinks, journals, strict=True):
            if sink.is_whole:
                journal.forget()
    refuse_existing(sink.path for sink in sinks if not sink.is_whole)
