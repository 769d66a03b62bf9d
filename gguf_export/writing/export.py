"""One read of a checkpoint becomes one or several GGUF files.

`prepare` decides everything before a weight is read; `run` executes it slab by slab, each read once and encoded for
every file that lacks it, by several threads (the kernels release the GIL); `export` is both.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from calibration.importance.imatrix import Imatrix
from calibration.importance.imatrix_files import load_imatrix
from gguf_export.files.disk import allocated, check_space
from gguf_export.metadata import file_names as names
from gguf_export.metadata import model_keys as metadata
from gguf_export.metadata.model_keys import KeyValue
from gguf_export.vocab import vocab_keys as vocab
from gguf_export.writing import fingerprint
from gguf_export.writing.header import header
from gguf_export.writing.journal import Journal
from gguf_export.writing.sink import Sink
from gguf_export.writing.slabs import (
    SLAB_BYTES,
    Seconds,
    Worker,
    in_window,
    slabs_of,
    source_bytes,
)
from quantize import codec
from quantize.exceptions import ActivationError, ImatrixError, NotFiniteError, OutputError
from quantize.recipes.ftypes import ftype
from quantize.recipes.layout import Plan
from quantize.recipes.recipe import Recipe, make_plan
from quantize.sources.checkpoint import Checkpoint, open_checkpoint
from quantize.telling import Note, OnProgress, Progress, Remark, discard, silent
from quantize.tensors import NUMPY_TYPES


@dataclass(frozen=True)
class OutputFile:
    """One file to be written, complete but for its weights."""

    path: Path
    plan: Plan
    keys: tuple[KeyValue, ...]

    @property
    def n_bytes(self) -> int:
        """Size of the whole file."""
        return len(header(self.keys, self.plan)) + self.plan.data_bytes


@dataclass(frozen=True)
class ExportJob:
    """A prepared export: what will be read, what will be written, and with which importances."""

    checkpoint: Checkpoint
    files: tuple[OutputFile, ...]
    imatrix: Imatrix | None = None
    remarks: tuple[Remark | str, ...] = ()
    """What a careful reader wants to be told: fallbacks taken, settings that a GGUF cannot say."""


@dataclass(frozen=True)
class ExportResult:
    """What `run` did."""

    files: tuple[OutputFile, ...]
    bytes_read: int
    seconds: Seconds = field(compare=False)


def export(
    model: Path | str,
    ftypes: Sequence[str | Recipe],
    folder: Path | str,
    *,
    imatrix: Imatrix | Path | str | None = None,
    name: str | None = None,
    override_kv: Sequence[str] = (),
    pre: str | None = None,
    publisher: str | None = None,
    jobs: int | None = None,
    force: bool = False,
    restart: bool = False,
    progress: OnProgress = silent,
    note: Note = discard,
) -> ExportResult:
    """Quantize the checkpoint in folder `model` to one GGUF file for each file type, from one read of its shards.

    Args:
        model: the folder of a Hugging Face checkpoint.
        ftypes: names of file types, such as "Q4_K_M", or recipes.
        folder: where the files go.
        imatrix: importances, or the file that holds them.
        name, override_kv, pre, publisher: see `prepare`.
        jobs, force, restart, progress, note: see `run`.

    Raises:
        MoeGgufError: see `prepare` and `run`.
    """
    if isinstance(imatrix, (str, Path)):
        imatrix = load_imatrix(imatrix)
    recipes = [recipe if isinstance(recipe, Recipe) else Recipe(ftype(recipe)) for recipe in ftypes]
    prepared = prepare(
        open_checkpoint(model),
        recipes,
        Path(folder),
        imatrix=imatrix,
        name=name,
        override_kv=override_kv,
        pre=pre,
        publisher=publisher,
    )
    return run(prepared, jobs=jobs, force=force, restart=restart, progress=progress, note=note)


def prepare(
    checkpoint: Checkpoint,
    recipes: Sequence[Recipe],
    folder: Path,
    *,
    imatrix: Imatrix | None = None,
    name: str | None = None,
    override_kv: Sequence[str] = (),
    pre: str | None = None,
    publisher: str | None = None,
) -> ExportJob:
    """Plan the files; nothing is written and no weight is read.

    Args:
        checkpoint: the model.
        recipes: one for each file.
        folder: where the files go; with `publisher`, the root of LM Studio's models.
        imatrix: importances of the inputs, per tensor and expert.
        name: `general.name`, and the base of the file names; by default found as llama.cpp's converter finds it.
        override_kv: metadata to set, spelled KEY=TYPE:VALUE as llama-quantize takes it.
        pre: name of the pre-tokenizer, where it is not recognised.
        publisher: put the files where LM Studio looks: `folder/publisher/model/file.gguf`.

    Raises:
        MoeGgufError: a recipe, tokenizer, imatrix or setting that does not fit the model.
    """
    specs, hparams = checkpoint.specs(), checkpoint.hparams
    remarks: list[Remark | str] = list(checkpoint.remarks)
    if imatrix is not None:
        remarks += imatrix.check(specs)
    overrides = [metadata.parse_override(text) for text in override_kv]
    keys = metadata.model_keys(
        checkpoint.path,
        checkpoint.config,
        hparams,
        n_params=metadata.count_params(specs),
        name=name,
        note=remarks.append,
    )
    keys += vocab.vocab_keys(checkpoint.path, checkpoint.config, hparams.n_vocab, pre, note=remarks.append)
    files = []
    for recipe in recipes:
        plan = make_plan(specs, hparams, recipe, has_imatrix=imatrix is not None)
        file_keys = metadata.assemble(keys, recipe.ftype.id, imatrix, overrides)
        file_name = names.output_name(keys, recipe.ftype.name)
        if publisher is None:
            path = folder / file_name
        else:
            path = names.lmstudio_path(folder, publisher, names.model_folder(keys), file_name)
        files.append(OutputFile(path, plan, tuple(file_keys)))
        _refuse_blind(plan, imatrix)
    if len({file.path for file in files}) < len(files):
        raise OutputError(f"{files[0].path}: two of the files would have the same name; give each type once")
    return ExportJob(checkpoint, tuple(files), imatrix, tuple(remarks))


def _refuse_blind(plan: Plan, imatrix: Imatrix | None) -> None:
    """Some types are of no use without importances: llama-quantize refuses them, too."""
    for planned in plan.tensors:
        if planned.requires_imatrix and (imatrix is None or imatrix.importance(planned.spec.name, 0) is None):
            raise ImatrixError(
                f"{planned.spec.name}: {plan.ftype.name} makes it {planned.qtype.name}, which needs importances, and "
                "the importance matrix has none for it; give one that covers it, or another --tensor-type"
            )


def run(
    export: ExportJob,
    *,
    jobs: int | None = None,
    force: bool = False,
    restart: bool = False,
    progress: OnProgress = silent,
    note: Note = discard,
) -> ExportResult:
    """Write the files of a prepared export, or go on with writing them where an earlier run was stopped.

    Args:
        export: what `prepare` returned.
        jobs: threads that read, encode and write; by default one for each processor.
        force: replace files that exist.
        restart: use nothing of an earlier run that was stopped.
        progress: called with the progress in bytes of the checkpoint, as far as it is still to be read.
        note: told, in one line each, what is continued, what is begun afresh and why, what was kept.

    Raises:
        OutputError: a file exists already, is being written by another run, or the disk is full. Nothing is left under
            the final names of files that are not whole; what is done is kept for the next run.
        CheckpointError: a shard is damaged, or a weight is not a finite number.
    """
    started = time.monotonic()
    jobs = jobs or os.cpu_count() or 1
    read_before = export.checkpoint.bytes_read
    seconds = Seconds()
    with opened(export, force=force, restart=restart, progress=progress, note=note) as sinks:
        worker = Worker(export.checkpoint, sinks, export.imatrix)
        slabs = [slab for slab in slabs_of(export.checkpoint) if worker.lacking(slab)]
        if slabs:
            compile_kernels(export, progress)
        done, total = 0, sum(map(source_bytes, slabs))
        # Closed before the sinks are: an error or Ctrl-C must not close a file that is written to.
        with closing(in_window(worker, slabs, jobs)) as finished:
            for slab, spent in finished:
                seconds.add(spent)
                done += source_bytes(slab)
                progress(Progress("encoding", done, total))
    seconds.wall = time.monotonic() - started
    return ExportResult(export.files, export.checkpoint.bytes_read - read_before, seconds)


@contextmanager
def opened(
    export: ExportJob,
    *,
    force: bool = False,
    restart: bool = False,
    imatrix_hash: str | None = None,
    progress: OnProgress = silent,
    note: Note = discard,
) -> Iterator[list[Sink]]:
    """The outputs, locked and ready for slabs; they get their names when the block ends well.

    Args:
        export: what `prepare` returned.
        force, restart, progress, note: as in `run`.
        imatrix_hash: of what the importances are made from, where they are made only while the files are.

    Raises:
        OutputError: as in `run`.
    """
    with ExitStack() as stack:
        journals = _lock(stack, export, imatrix_hash or fingerprint.of_imatrix(export.imatrix))
        sinks: list[Sink] = []
        for file, journal in zip(export.files, journals, strict=True):
            if restart:
                journal.forget()
            if not journal.is_locked and not sinks:
                note(f"{file.path.parent}: locks are unknown here; do not run the same export twice at once")
            sinks.append(Sink(file.path, file.keys, file.plan, journal, note=note, progress=progress))
        if not force:
            _refuse_existing(sinks, journals)
        check_space(
            (sink.path.parent, 0 if sink.is_whole else max(0, sink.n_bytes - allocated(sink.partial)))
            for sink in sinks
        )
        for sink in sinks:
            stack.enter_context(sink)
        try:
            yield sinks
        except (ActivationError, NotFiniteError):  # the checkpoint is damaged
            for sink in sinks:
                sink.discard()
            raise
        # Everything is made durable before the first file gets its name: what is left then takes a moment.
        for sink in sinks:
            sink.finish()
        for sink in sinks:
            sink.commit()
        for journal in journals:
            journal.remove()


def _refuse_existing(sinks: Sequence[Sink], journals: Sequence[Journal]) -> None:
    if all(sink.path.exists() for sink in sinks):  # a run may have been stopped while it removed its journals
        for sink, journal in zip(sinks, journals, strict=True):
            if sink.is_whole and not all(one.is_whole for one in sinks):
                journal.forget()
    for sink in sinks:
        if sink.path.exists() and not sink.is_whole:
            raise OutputError(f"{sink.path}: exists already; pass --force to replace it")


def _lock(stack: ExitStack, export: ExportJob, imatrix: str) -> list[Journal]:
    """The journal of each file; they are locked in one order, so that of two runs one gets them all."""
    checkpoint = fingerprint.of_checkpoint(export.checkpoint)
    journals: dict[Path, Journal] = {}
    for file in sorted(export.files, key=lambda file: file.path):
        try:
            file.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"{file.path.parent}: cannot be made: {error.strerror}") from error
        print_of_file = fingerprint.fingerprint(
            header(file.keys, file.plan),
            file.plan,
            imatrix=imatrix,
            checkpoint=checkpoint,
            slab_bytes=SLAB_BYTES,
        )
        journals[file.path] = stack.enter_context(Journal(file.path, print_of_file))
    return [journals[file.path] for file in export.files]


def compile_kernels(export: ExportJob, progress: OnProgress) -> None:
    """Compile before the first slab, so that the first run says what it is doing while it does."""
    wanted = set()
    for file in export.files:
        for planned in file.plan.tensors:
            known = export.imatrix is not None and export.imatrix.importance(planned.spec.name, 0) is not None
            wanted.add((NUMPY_TYPES[planned.spec.qtype], planned.qtype, known))
    codec.compile_kernels(sorted(wanted, key=str), progress)
