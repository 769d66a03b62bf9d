"""Calibrate and export in the same pass: text runs through the model, and each matrix is encoded while it is in memory.

The importances of a matrix are complete when the text has passed it, so it is encoded there and then, weighed with
them, and the shards are read once for both. The files are those of an `imatrix` run followed by an `export`.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np

from calibration.forward.settings import ForwardSettings, best_dtype
from calibration.forward.streams import Given
from calibration.importance.imatrix import Entry, Imatrix
from calibration.importance.observers import Collected, collect_imatrix
from calibration.text.chunks import Chunks
from gguf_export.files.disk import allocated
from gguf_export.writing import fingerprint, pass_state
from gguf_export.writing.export import ExportJob, ExportResult, compile_kernels, opened
from gguf_export.writing.journal import journal_path
from gguf_export.writing.pass_state import StateFile, state_path
from gguf_export.writing.sink import Sink
from gguf_export.writing.slabs import Seconds, Worker, slabs_of_matrix
from quantize.exceptions import OutputError
from quantize.telling import Note, OnProgress, discard, silent
from quantize.tensors import Array, TensorSpec

__all__ = ["Calibrated", "expected_imatrix", "run_calibrated"]


@dataclass(frozen=True)
class Calibrated:
    """What `run_calibrated` did."""

    exported: ExportResult
    collected: Collected


def expected_imatrix(specs: Sequence[TensorSpec], chunks: Chunks, *, prior: float, file: str) -> Imatrix:
    """The importance matrix that a pass will fill: its tensors, its text, no tokens yet.

    `prepare` takes it, for the plan and the keys of a file depend on what is covered and not on the values.

    Args:
        specs: the tensors of the model.
        chunks: the text.
        prior: see `Imatrix`.
        file: what the files shall say the importances come from.
    """
    covered = (spec for spec in specs if spec.name.startswith("blk.") and len(spec.shape) > 1)
    entries = {
        spec.name: Entry(
            np.zeros((spec.n_matrix, spec.n_per_row), np.float32), np.zeros(spec.n_matrix, np.int64)
        )
        for spec in covered
    }
    return Imatrix(
        entries=entries,
        datasets=list(chunks.names),
        chunk_count=chunks.n_chunk,
        chunk_size=chunks.n_ctx,
        prior=prior,
        file=file,
    )


def run_calibrated(
    export: ExportJob,
    chunks: Chunks,
    *,
    jobs: int | None = None,
    force: bool = False,
    restart: bool = False,
    settings: ForwardSettings | None = None,
    progress: OnProgress = silent,
    note: Note = discard,
) -> Calibrated:
    """Write the files of an export that was prepared with `expected_imatrix`, calibrating on the way.

    Args:
        export: what `prepare` returned.
        chunks: the text, the one that `expected_imatrix` was given.
        jobs: threads that encode; by default one for each processor.
        force, restart, note: see `export.run`. What an earlier run encoded is not encoded again, and the text goes on
            behind the last layer whose state was kept.
        settings: see `calibration.forward.run.forward`.
        progress: told the tokens that are through.

    Raises:
        OutputError, CheckpointError: see `export.run`.
        ActivationError, TokenizerError: see `calibration.forward.run.forward`.
    """
    started = time.monotonic()
    if export.imatrix is None:
        raise ValueError("the export was not prepared with expected_imatrix")
    settings = settings or ForwardSettings(dtype=best_dtype())
    prior = export.imatrix.prior
    seconds = Seconds()
    read_before = export.checkpoint.bytes_read
    source = _fingerprint(chunks, prior, settings)
    sinks: list[Sink] = []
    with (
        _state(export, chunks, settings, sinks, force, restart, note) as keeper,
        opened(
            export, force=force, restart=restart, imatrix_hash=source, progress=progress, note=note
        ) as ready,
        ThreadPoolExecutor(jobs or os.cpu_count() or 1) as pool,
    ):
        sinks += ready
        worker = Worker(export.checkpoint, sinks)
        compile_kernels(export, progress)

        def encode(spec: TensorSpec, xid: int, weights: Array, imatrix: Imatrix, _given: Given) -> None:
            importance = imatrix.importance(spec.name, xid)
            shelved = [
                pool.submit(worker.shelve, slab, weights[slice(*slab.rows)], importance)
                for slab in slabs_of_matrix(export.checkpoint, spec, xid)
            ]
            for future in shelved:
                seconds.add(future.result())

        collected = collect_imatrix(
            export.checkpoint,
            chunks,
            prior=prior,
            on_weights=encode,
            settings=settings,
            keeper=keeper,
            progress=progress,
        )
    seconds.wall = time.monotonic() - started
    exported = ExportResult(export.files, export.checkpoint.bytes_read - read_before, seconds)
    imatrix = replace(collected.imatrix, file=export.imatrix.file)
    return Calibrated(exported, replace(collected, imatrix=imatrix))


@contextlib.contextmanager
def _state(
    export: ExportJob,
    chunks: Chunks,
    settings: ForwardSettings,
    sinks: Sequence[Sink],
    force: bool,
    restart: bool,
    note: Note,
) -> Iterator[StateFile]:
    """The state of the pass, beside the first file; it goes when all files have their names.

    It knows nothing of the files: whatever they lack of the layers that are done is encoded at the end of the pass.
    """
    first = export.files[0].path
    with contextlib.suppress(OSError):  # then there is no file either, and the lock says why
        first.parent.mkdir(parents=True, exist_ok=True)
    told = pass_state.fingerprint([chunks], settings)
    told |= {"checkpoint": fingerprint.of_checkpoint(export.checkpoint)}

    def spare() -> int:
        return sum(max(0, sink.n_bytes - allocated(sink.partial)) for sink in sinks)

    with StateFile(state_path(first), first.name, told, spare=spare, restart=restart, note=note) as state:
        try:
            yield state
        except OutputError:
            paths = [file.path for file in export.files]
            if not force and all(path.exists() and not journal_path(path).exists() for path in paths):
                state.remove()  # the run was killed when the files had just got their names
            raise


def _fingerprint(chunks: Chunks, prior: float, settings: ForwardSettings) -> str:
    """Of all that decides the importances beside the checkpoint."""
    told = hashlib.sha256(np.ascontiguousarray(chunks.inputs).tobytes())
    told.update(f"{chunks.n_ctx} {prior} {settings.numerics}".encode())
    return told.hexdigest()
