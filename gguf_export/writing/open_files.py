"""The outputs of an export while they are made: locked, opened, filled with blocks, and given their names together."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from calibration.importance.imatrix_files import imatrix_bytes
from gguf_export.files.disk import check_space
from gguf_export.files.opening import status_of
from gguf_export.files.outputs import refuse_outputs
from gguf_export.writing import fingerprint, slabs
from gguf_export.writing.job import ExportJob
from gguf_export.writing.journal import Journal, journal_path
from gguf_export.writing.results import Seconds
from gguf_export.writing.sink import Sink
from gguf_export.writing.slabs import EncodedSlab, Slab
from gguf_export.writing.standing import Coming, Standing
from quantize.exceptions import (
    ActivationError,
    ModelChangedError,
    NotFiniteError,
    OutputError,
    OutputExistsError,
)
from quantize.recipes.layout import PlannedTensor
from quantize.telling import Note, OnProgress, Remark, discard, silent
from quantize.tensors import Array, QType
from quantize.tracing import span

__all__ = ["OpenFiles", "opened"]


class OpenFiles:
    """The files of an export, open to take slabs; its methods may be called from several threads."""

    def __init__(
        self, sinks: Sequence[Sink], standing: Collection[Path] = (), *, imatrix_stands: bool = False
    ) -> None:
        """Take files of which those in `standing` were there, and are left; so are, perhaps, kept importances."""
        self.sinks = tuple(sinks)
        self.standing = tuple(standing)
        self.imatrix_stands = imatrix_stands
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

    @property
    def were_there(self) -> bool:
        """Whether there is nothing to do: all of them were there, and are left."""
        return len(self.standing) == len(self.sinks)

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
            with span("write", file=sink.path.name, tensor=planned.name):
                sink.write(planned, slab.offset_in(planned), encoded.blocks[planned.qtype])
        seconds = time.perf_counter() - started
        return Seconds(read=encoded.read_seconds, encode=encoded.encode_seconds, write=seconds)


@contextmanager
def opened(
    job: ExportJob,
    *,
    force: bool = False,
    skip_existing: bool = False,
    restart: bool = False,
    coming: Coming | None = None,
    progress: OnProgress = silent,
    note: Note = discard,
) -> Iterator[OpenFiles]:
    """The outputs of a job, locked and ready for slabs; they get their names when the block ends well.

    A file that is there and is what would be made is left as it is (see `writing.standing`).

    Args:
        job: the export.
        force: replace files that exist.
        skip_existing: leave files that exist, whatever they are.
        restart: use nothing of an earlier run that was stopped.
        coming: what a text gives while the files are made; the block writes the importances that are kept of it when
            all slabs are in the files, before these get their names.
        progress: called while the work of an earlier run is read back.
        note: receives remarks: which files are left, continued, or begun afresh and why, and what of them is kept.

    Raises:
        OutputBusyError: another run is writing one of the files.
        OutputExistsError: a file exists already, and is another one.
        NoSpaceError: the disk has no room for the files.
        OutputError: the folder cannot be written, or the disk is broken.
        ModelChangedError: the checkpoint changed meanwhile; nothing of the files is kept.
    """
    _make_folders(job)
    paths = [file.path for file in job.files]
    refuse_outputs([], made=paths, own=[journal_path(path) for path in paths])
    with ExitStack() as stack:
        with span("fingerprint"):
            journals = _lock(
                stack, job, coming.fingerprint if coming else fingerprint.of_imatrix(job.imatrix)
            )
        with span("look for earlier work"):
            sinks = _recalled(job, journals, restart, progress, note)
            files = OpenFiles(sinks) if force else _left(job, sinks, coming, skip_existing, progress, note)
        needed = [(sink.path.parent, sink.lacking_bytes) for sink in sinks]
        if coming is not None and coming.kept is not None and job.imatrix and not files.imatrix_stands:
            needed.append((coming.kept.parent, imatrix_bytes(job.imatrix)))
        check_space(needed)
        with span("create files"):
            for sink in sinks:
                stack.enter_context(sink)
        try:
            yield files
            job.source.refuse_changed()
        except (ActivationError, ModelChangedError, NotFiniteError):
            # The checkpoint is damaged, or what was made may be of two.
            for sink in sinks:
                sink.discard()
            raise
        # Everything is made durable before the first file gets its name: what is left then takes a moment.
        with span("finish files"):
            files.finish()
        with span("name files"):
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


def _left(
    job: ExportJob,
    sinks: Sequence[Sink],
    coming: Coming | None,
    skip_existing: bool,
    progress: OnProgress,
    note: Note,
) -> OpenFiles:
    """The files, of which those that are there are left, if they are what would be made, or shall be skipped.

    Raises:
        OutputExistsError: another file is there.
    """
    compared = Standing(job, coming, progress)
    kept, differs = compared.kept_importances()
    is_kept = kept is not None or (
        skip_existing
        and coming is not None
        and coming.kept is not None
        and status_of(coming.kept) is not None
    )
    imatrix = job.imatrix if coming is None else kept
    sink_of = {sink.path: sink for sink in sinks}
    standing: list[Path] = []
    for output in job.outputs:
        there = [file for file in output.files if status_of(file.path) is not None]
        is_skipped = skip_existing and len(there) == len(output.files)
        for file in there:
            sink = sink_of[file.path]
            if sink.is_whole:  # by a run that was stopped on its last steps, whose journal knows it
                continue
            other = "" if is_skipped else compared.differs(file, imatrix)
            if other:
                raise _exists(file.path, other)
            sink.leave()
            standing.append(file.path)
            how = "left as it is" if is_skipped else "what would be made"
            note(Remark(str(file.path), f"is there, and is {how}"))
    # One beside files that are done is of the run that made them: it was stopped before they got their names.
    if differs and coming and coming.kept and not is_kept and not all(sink.is_done for sink in sinks):
        raise _exists(coming.kept, differs)
    return OpenFiles(sinks, standing, imatrix_stands=is_kept)


def _exists(path: Path, differs: str) -> OutputExistsError:
    message = f"exists already, and {differs}"
    return OutputExistsError(str(path), message, "pass {setting} to replace it", setting="force")
