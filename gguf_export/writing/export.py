"""One read of a checkpoint becomes one or several GGUF files.

`prepare` decides everything before a weight is read; `run` executes it slab by slab, each read once and encoded for
every file that lacks it, by several threads (the kernels release the GIL). `export` is both, `plan` the first alone.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from calibration.importance.imatrix import Imatrix, load_imatrix
from gguf_export.writing.job import ExportJob, OutputFile, prepare
from gguf_export.writing.open_files import Seconds, opened
from gguf_export.writing.remarks import export_remarks
from gguf_export.writing.slabs import Slab, compile_kernels, encode_slab, slabs_of
from quantize.engine import Threads
from quantize.recipes.ftypes import ftype
from quantize.recipes.recipe import Recipe
from quantize.sources.checkpoint import open_checkpoint
from quantize.telling import Note, OnProgress, Progress, Remark, discard, silent

__all__ = [
    "ExportJob",
    "ExportPlan",
    "ExportResult",
    "FileFigures",
    "TensorFigures",
    "export",
    "file_figures",
    "plan",
    "prepare",
    "run",
]


@dataclass(frozen=True)
class TensorFigures:
    """One tensor of a file: its shape in NumPy's order, its type, its bytes, and where they begin behind the header."""

    name: str
    shape: tuple[int, ...]
    qtype: str
    n_bytes: int
    offset: int


@dataclass(frozen=True)
class FileFigures:
    """One file of an export: its type, its size in bytes, its bits per weight and its tensors in their order."""

    path: Path
    ftype: str
    n_bytes: int
    bpw: float
    tensors: tuple[TensorFigures, ...]


@dataclass(frozen=True)
class ExportPlan:
    """The files that an export would write, and remarks on them: fallbacks, settings that a GGUF cannot say."""

    files: tuple[FileFigures, ...]
    remarks: tuple[Remark | str, ...]


@dataclass(frozen=True)
class ExportResult:
    """The files that an export has written, the bytes of the checkpoint that it read, and its seconds."""

    files: tuple[FileFigures, ...]
    bytes_read: int
    seconds: Seconds = field(compare=False)


def export(
    model: Path | str,
    ftypes: str | Sequence[str | Recipe],
    folder: Path | str = ".",
    *,
    imatrix: Imatrix | Path | str | None = None,
    prior: float = 0.0,
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
        ftypes: the name of a file type such as "Q4_K_M", or several names; recipes where names do not suffice.
        folder: where the files go.
        imatrix: importances, or the file that holds them.
        prior: of a file of importances; see `Imatrix`.
        name, override_kv, pre, publisher: see `prepare`.
        jobs, force, restart, progress: see `run`.
        note: receives a remark on every fallback of the plan, and those of `run`.

    Raises:
        MoeGgufError: see `prepare` and `run`.
    """
    job = _job(model, ftypes, folder, imatrix, prior, name, override_kv, pre, publisher)
    for remark in export_remarks(job):
        note(remark)
    return run(job, jobs=jobs, force=force, restart=restart, progress=progress, note=note)


def plan(
    model: Path | str,
    ftypes: str | Sequence[str | Recipe],
    folder: Path | str = ".",
    *,
    imatrix: Imatrix | Path | str | None = None,
    prior: float = 0.0,
    name: str | None = None,
    override_kv: Sequence[str] = (),
    pre: str | None = None,
    publisher: str | None = None,
) -> ExportPlan:
    """Say what `export` would write; nothing is written and no weight is read.

    Args:
        model, ftypes, folder, imatrix, prior, name, override_kv, pre, publisher: see `export`.

    Raises:
        MoeGgufError: see `prepare`.
    """
    job = _job(model, ftypes, folder, imatrix, prior, name, override_kv, pre, publisher)
    return ExportPlan(tuple(map(file_figures, job.files)), tuple(export_remarks(job)))


def _job(
    model: Path | str,
    ftypes: str | Sequence[str | Recipe],
    folder: Path | str,
    imatrix: Imatrix | Path | str | None,
    prior: float,
    name: str | None,
    override_kv: Sequence[str],
    pre: str | None,
    publisher: str | None,
) -> ExportJob:
    if isinstance(imatrix, (str, Path)):
        imatrix = load_imatrix(imatrix, prior=prior)
    given = [ftypes] if isinstance(ftypes, str) else ftypes
    recipes = [recipe if isinstance(recipe, Recipe) else Recipe(ftype(recipe)) for recipe in given]
    return prepare(
        open_checkpoint(model),
        recipes,
        Path(folder),
        imatrix=imatrix,
        name=name,
        override_kv=override_kv,
        pre=pre,
        publisher=publisher,
    )


def run(
    job: ExportJob,
    *,
    jobs: int | None = None,
    force: bool = False,
    restart: bool = False,
    progress: OnProgress = silent,
    note: Note = discard,
) -> ExportResult:
    """Write the files of a prepared export, or go on with writing them where an earlier run was stopped.

    Args:
        job: what `prepare` returned.
        jobs: threads that read, encode and write; by default one for each processor.
        force: replace files that exist.
        restart: use nothing of an earlier run that was stopped.
        progress: called with the progress in bytes of the checkpoint, as far as it is still to be read.
        note: receives remarks: which files are continued, or begun afresh and why, and what of them is kept.

    Raises:
        OutputError: a file exists already (`OutputExistsError`), another run is writing it (`OutputBusyError`), the
            disk is full (`NoSpaceError`) or broken. Nothing is left under the final names of files that are not whole;
            what is done is kept for the next run.
        CheckpointError: a shard is damaged, or a weight is not a finite number.
    """
    started = time.monotonic()
    read_before = job.checkpoint.bytes_read
    seconds = Seconds()
    with opened(job, force=force, restart=restart, progress=progress, note=note) as files:

        def work(slab: Slab) -> Seconds:
            # The thread that encodes a slab writes it, so that checksums and copies are shared among the threads.
            importance = job.imatrix.importance(slab.spec.name, slab.xid) if job.imatrix else None
            return files.write(encode_slab(job.checkpoint, slab, files.types_for(slab), importance))

        slabs = [slab for slab in slabs_of(job.checkpoint) if files.lacking(slab)]
        if slabs:
            compile_kernels(job.plans, job.weighted, progress)
        done, total = 0, sum(slab.n_bytes for slab in slabs)
        # Closed before the files are: an error or Ctrl-C must not close a file that is written to.
        with Threads(jobs) as engine, closing(engine.map(work, slabs)) as finished:
            for slab, spent in finished:
                seconds.add(spent)
                done += slab.n_bytes
                progress(Progress("encoding", done, total))
    seconds.wall = time.monotonic() - started
    figures = tuple(map(file_figures, job.files))
    return ExportResult(figures, job.checkpoint.bytes_read - read_before, seconds)


def file_figures(file: OutputFile) -> FileFigures:
    """The figures of a file that is planned or written."""
    tensors = tuple(
        TensorFigures(
            planned.spec.name, planned.spec.shape, planned.qtype.name, planned.n_bytes, planned.offset
        )
        for planned in file.plan.tensors
    )
    return FileFigures(file.path, file.plan.ftype.name, file.n_bytes, file.plan.bpw, tensors)
