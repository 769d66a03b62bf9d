"""Calibrate and export in the same pass: text runs through the model, and each matrix is encoded while it is in memory.

The importances of a matrix are complete when the text has passed it, so it is encoded there and then, weighed with
them, and the shards are read once for both. The files are those of an `imatrix` run followed by an `export`.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from calibration.feedback.run import FeedbackText
from calibration.forward.settings import ForwardSettings, best_dtype
from calibration.forward.streams import Given
from calibration.importance.imatrix import Entry, Imatrix
from calibration.importance.observers import collect_imatrix
from calibration.text.chunks import Chunks
from gguf_export.writing import fingerprint
from gguf_export.writing.feed import Feed
from gguf_export.writing.importances import write_imatrix
from gguf_export.writing.job import ExportJob
from gguf_export.writing.journal import journal_path
from gguf_export.writing.open_files import OpenFiles, opened
from gguf_export.writing.results import ExportResult, Seconds, file_figures
from gguf_export.writing.slabs import Slab, compile_kernels, encode_weights, slabs_of_matrix
from gguf_export.writing.standing import Coming
from gguf_export.writing.state_file import StateFile, state_path
from quantize.engine import Threads
from quantize.exceptions import OutputExistsError
from quantize.families.roles import is_layer_matrix
from quantize.guide import Guide
from quantize.telling import Note, OnProgress, discard, silent
from quantize.tensors import Array, TensorSpec

__all__ = ["Calibration", "expected_imatrix", "nothing_done", "run_calibrated", "state_of"]


@dataclass(frozen=True)
class Calibration:
    """The text that gives the importances, and how it passes through the model."""

    chunks: Chunks
    prior: float = 0.0
    """See `Imatrix`."""
    settings: ForwardSettings = field(default_factory=lambda: ForwardSettings(dtype=best_dtype()))
    feedback: FeedbackText | None = None
    """The same text in the parts by which error feedback chooses codes; None where they are llama.cpp's."""
    texts: tuple[Path, ...] = ()
    """The files that the text comes from."""


def expected_imatrix(specs: Sequence[TensorSpec], calibration: Calibration, file: str) -> Imatrix:
    """The importance matrix that a pass will fill: its tensors, its text, no tokens yet.

    `prepare` takes it, for the plan and the keys of a file depend on what is covered and not on the values.

    Args:
        specs: the tensors of the model.
        calibration: the text.
        file: the source of the importances, as the keys of the files shall name it.
    """
    chunks = calibration.chunks
    entries = {
        spec.name: Entry(
            np.zeros((spec.n_matrix, spec.n_per_row), np.float32), np.zeros(spec.n_matrix, np.int64)
        )
        for spec in specs
        if is_layer_matrix(spec)
    }
    return Imatrix(
        entries=entries,
        datasets=list(chunks.names),
        chunk_count=chunks.n_chunk,
        chunk_size=chunks.n_ctx,
        prior=calibration.prior,
        file=file,
    )


class _Unit(NamedTuple):
    """A slab whose weights [n_row, n_per_row] are in memory, with the guide of its matrix."""

    slab: Slab
    weights: Array
    guide: Guide | None


def run_calibrated(
    job: ExportJob,
    calibration: Calibration,
    *,
    save_imatrix: Path | None = None,
    jobs: int | None = None,
    force: bool = False,
    skip_existing: bool = False,
    restart: bool = False,
    progress: OnProgress = silent,
    note: Note = discard,
) -> ExportResult:
    """Write the files of an export that was prepared with `expected_imatrix`, calibrating on the way.

    Args:
        job: what `prepare` returned.
        calibration: the one that `expected_imatrix` was given.
        save_imatrix: keep the importances in this file, which appears before the others: where it cannot be written,
            nothing is lost, and the same command goes on.
        jobs: threads that encode; by default one for each processor.
        force, skip_existing, restart, note: see `export.run`. What an earlier run encoded is not encoded again, and
            the text goes on behind the last layer whose state was kept.
        progress: called with the tokens that have passed the model.

    Raises:
        OutputError, CheckpointError: see `export.run`.
        ActivationError, TokenizerError: see `calibration.forward.run.forward`.
    """
    if job.imatrix is None:
        raise ValueError("the export was not prepared with expected_imatrix")
    started = time.monotonic()
    read_before = job.source.bytes_read
    seconds = Seconds()
    chunks, settings = calibration.chunks, calibration.settings
    weighted = job.weighted  # not all that the text reaches, where some weights are excluded
    calibrated = fingerprint.of_calibration(chunks, calibration.prior, settings)
    imatrix_hash = fingerprint.hashed(text.encode() for text in (calibrated, *sorted(weighted)))
    coming = Coming(imatrix_hash, calibration.texts, save_imatrix)
    with (
        state_of(job, calibration, restart, note) as keeper,
        opened(
            job,
            force=force,
            skip_existing=skip_existing,
            restart=restart,
            coming=coming,
            progress=progress,
            note=note,
        ) as files,
    ):
        if files.were_there and (save_imatrix is None or files.imatrix_stands):
            return nothing_done(job, files, save_imatrix)
        keeper.spare = lambda: files.lacking_bytes
        compile_kernels(job.plans, job.weighted, progress)

        def work(unit: _Unit) -> Seconds:
            types = files.types_for(unit.slab)
            return files.write(encode_weights(unit.slab, unit.weights, types, unit.guide))

        with Threads(jobs) as engine, Feed(engine, work, seconds.add) as feed:

            def encode(spec: TensorSpec, xid: int, weights: Array, imatrix: Imatrix, _given: Given) -> None:
                guide = imatrix.guide(spec.name, xid) if spec.name in weighted else None
                for slab in slabs_of_matrix(job.source, spec, xid):
                    if files.lacking(slab):
                        feed.put(_Unit(slab, weights[slice(*slab.rows)], guide))

            collected = collect_imatrix(
                job.source,
                chunks,
                prior=calibration.prior,
                on_weights=encode,
                settings=settings,
                keeper=keeper,
                progress=progress,
            )
        if save_imatrix is not None and not (skip_existing and files.imatrix_stands):
            files.finish()
            job.source.refuse_changed()
            write_imatrix(save_imatrix, collected.imatrix, is_again=not force)
    seconds.wall = time.monotonic() - started
    figures = tuple(map(file_figures, job.outputs))
    collected = replace(collected, imatrix=replace(collected.imatrix, file=job.imatrix.file))
    read = job.source.bytes_read - read_before
    return ExportResult(figures, read, seconds, collected, standing=files.standing, imatrix=save_imatrix)


def nothing_done(job: ExportJob, files: OpenFiles, imatrix: Path | None) -> ExportResult:
    """The result of an export whose files were all there."""
    return ExportResult(
        tuple(map(file_figures, job.outputs)), 0, Seconds(), standing=files.standing, imatrix=imatrix
    )


@contextlib.contextmanager
def state_of(job: ExportJob, calibration: Calibration, restart: bool, note: Note) -> Iterator[StateFile]:
    """The state of the pass, beside the first file; it goes when all files have their names.

    It knows nothing of the files: whatever they lack of the layers that are done is encoded at the end of the pass.
    """
    first = job.files[0].path
    with contextlib.suppress(OSError):  # then there is no file either, and the lock says why
        first.parent.mkdir(parents=True, exist_ok=True)
    decisive = fingerprint.of_pass([calibration.chunks], calibration.settings)
    decisive |= {"checkpoint": job.source.fingerprint()}
    if calibration.feedback is not None:
        decisive |= {"settings of error feedback": repr(calibration.feedback.settings)}
    with StateFile(state_path(first), first.name, decisive, restart=restart, note=note) as state:
        try:
            yield state
        except OutputExistsError:
            if _is_done(job):
                state.remove()  # an earlier run was killed when the files had just got their names
            raise


def _is_done(job: ExportJob) -> bool:
    """Whether all files stand, and no journal tells of a run that was about to replace one."""
    return all(file.path.exists() and not journal_path(file.path).exists() for file in job.files)
