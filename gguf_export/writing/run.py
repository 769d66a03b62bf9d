"""A prepared export is executed slab by slab, each read once and encoded for every file that lacks it.

Several threads work, for the kernels release the GIL.
"""

from __future__ import annotations

import os
import time
from collections.abc import Generator, Iterable
from contextlib import closing

from gguf_export.cluster.connection import LOCAL
from gguf_export.writing.job import ExportJob
from gguf_export.writing.open_files import OpenFiles, opened
from gguf_export.writing.results import ExportResult, Seconds, file_figures
from gguf_export.writing.slabs import Slab, SlabUnit, compile_kernels, encode_slab, slabs_of
from gguf_export.writing.spread import Written, spread
from quantize.engine import Engine, Threads
from quantize.heap import keep_freed_memory
from quantize.telling import Note, OnProgress, Progress, discard, silent

__all__ = ["run"]


def run(
    job: ExportJob,
    *,
    jobs: int | None = None,
    engine: Engine | None = None,
    ray: str | None = None,
    force: bool = False,
    skip_existing: bool = False,
    restart: bool = False,
    progress: OnProgress = silent,
    note: Note = discard,
) -> ExportResult:
    """Write the files of a prepared export, or go on with writing them where an earlier run was stopped.

    Args:
        job: what `prepare` returned.
        jobs: threads that read, encode and write; by default one for each processor.
        engine: reads and encodes in the place of threads.
        ray: the address of a Ray cluster whose nodes read, encode and write; "local" makes one of this machine.
        force: replace files that exist.
        skip_existing: leave files that exist, whatever they are.
        restart: use nothing of an earlier run that was stopped.
        progress: called with the progress in bytes of the checkpoint, as far as it is still to be read.
        note: told, in one line each, what is continued, what is begun afresh and why, what was kept.

    Raises:
        OutputError: another file exists already (`OutputExistsError`), a run is writing it (`OutputBusyError`), the
            disk is full (`NoSpaceError`) or broken. Nothing is left under the final names of files that are not whole;
            what is done is kept for the next run.
        CheckpointError: a shard is damaged, or a weight is not a finite number.
        ChoiceError: the cluster cannot be reached, or its nodes have other versions.
    """
    started = time.monotonic()
    read_before = job.source.bytes_read
    seconds = Seconds()
    read_elsewhere = 0
    with opened(
        job, force=force, skip_existing=skip_existing, restart=restart, progress=progress, note=note
    ) as files:
        slabs = [slab for slab in slabs_of(job.source) if files.lacking(slab)]
        if slabs and ray in (None, LOCAL):  # other machines have caches of their own
            compile_kernels(job.plans, job.weighted, progress)
        done, total = 0, sum(slab.n_bytes for slab in slabs)
        if ray is not None and slabs:
            written = spread(job, files, slabs, ray, jobs=jobs, progress=progress, note=note)
        else:
            units = (_unit(job, files, slab) for slab in slabs)  # one by one: each brings its importances
            written = _written(files, units, jobs or _n_thread(job), engine)
        # Closed before the files are: an error or Ctrl-C must not close a file that is written to.
        with closing(written) as finished:
            for n_bytes, spent, n_read in finished:
                seconds.add(spent)
                done += n_bytes
                read_elsewhere += n_read
                progress(Progress("encoding", done, total))
    seconds.wall = time.monotonic() - started
    figures = tuple(map(file_figures, job.outputs))
    n_read = job.source.bytes_read - read_before + read_elsewhere
    return ExportResult(figures, n_read, seconds, standing=files.standing)


def _unit(job: ExportJob, files: OpenFiles, slab: Slab) -> SlabUnit:
    guide = job.imatrix.guide(slab.spec.name, slab.xid) if job.imatrix else None
    return SlabUnit(job.source, slab, files.types_for(slab), guide)


def _n_thread(job: ExportJob) -> int:
    """One for each processor, or as many as the source can be read with."""
    return max(os.cpu_count() or 1, job.source.n_read)


def _written(
    files: OpenFiles, units: Iterable[SlabUnit], jobs: int, engine: Engine | None
) -> Generator[Written, None, None]:
    """Yield each slab when it is in all files, with the seconds that it took."""
    if engine is not None:  # it may work anywhere; what comes back is written here
        for unit, encoded in engine.map(encode_slab, units):
            yield Written(unit.slab.n_bytes, files.write(encoded), 0)
        return
    keep_freed_memory()
    # Threads write what they encode: checksums and copies take the time of every thread, not of one.
    with Threads(jobs) as threads:
        for unit, spent in threads.map(lambda unit: files.write(encode_slab(unit)), units):
            yield Written(unit.slab.n_bytes, spent, 0)
