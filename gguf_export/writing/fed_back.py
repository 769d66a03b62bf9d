"""Export with error feedback: the text runs through the model and through what becomes of it, layer after layer.

What the pass makes of a matrix is written there and then. The whole file is judged before it gets its name, on a part
of the text that has chosen nothing; where llama.cpp's encoding in the same types is better, that is written.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from calibration.feedback.embedding import encodes_embedding
from calibration.feedback.fitting import Aim, Fitted
from calibration.feedback.run import FeedbackText, feed_back
from calibration.forward.graph import EMBEDDING
from calibration.forward.saved_state import PassState, read_json
from calibration.forward.saved_state import opened as opened_state
from calibration.importance.imatrix import Imatrix
from calibration.importance.observers import Collected
from calibration.judging.model import Model
from calibration.judging.round_trip import RoundTrip, SharedSource
from calibration.judging.side_by_side import compare
from gguf_export.writing import fingerprint
from gguf_export.writing.calibrated import Calibration, nothing_done, state_of
from gguf_export.writing.importances import write_imatrix
from gguf_export.writing.job import ExportJob
from gguf_export.writing.open_files import OpenFiles, opened
from gguf_export.writing.results import ExportResult, FeedbackFigures, Seconds, file_figures
from gguf_export.writing.run import run
from gguf_export.writing.slabs import (
    EncodedSlab,
    SlabUnit,
    compile_kernels,
    encode_slab,
    slabs_of,
    slabs_of_matrix,
)
from gguf_export.writing.standing import Coming
from gguf_export.writing.state_file import StateFile
from gguf_export.writing.written import Written
from quantize.exceptions import DamagedStateError
from quantize.feedback import compiling
from quantize.finite import refuse_non_finite
from quantize.telling import Note, OnProgress, Remark, discard, silent
from quantize.tensors import NUMPY_TYPES, QType

__all__ = ["run_fed_back"]


class _WorseError(Exception):
    """The file is no better than the plain one; holds what is known of it."""

    def __init__(self, figures: FeedbackFigures, collected: Collected) -> None:
        self.figures, self.collected = figures, collected


def run_fed_back(
    job: ExportJob,
    plain: Callable[[Imatrix], ExportJob],
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
    """Write the one model of an export that was prepared with `expected_imatrix`, its codes chosen by error feedback.

    Args:
        job: what `prepare` returned, for one type.
        plain: prepares the same export with importances and without feedback, whose file is written where feedback does
            no good.
        calibration: the one that `expected_imatrix` was given.
        save_imatrix, jobs, force, skip_existing, restart, progress, note: see `run_calibrated`.

    Raises:
        OutputError, CheckpointError: see `export.run`.
        ActivationError, TokenizerError: see `calibration.forward.run.forward`.
    """
    started = time.monotonic()
    read_before = job.source.bytes_read
    if calibration.feedback is None:
        raise ValueError("the export was not prepared for error feedback")
    steps = _Run(job, calibration, calibration.feedback, jobs, progress)
    chunks, settings = calibration.chunks, calibration.settings
    calibrated = fingerprint.of_calibration(chunks, calibration.prior, settings)
    how = fingerprint.hashed(text.encode() for text in (repr(calibration.feedback.settings), calibrated))
    coming = Coming(how, calibration.texts, save_imatrix, moves_codes=True)
    standing: tuple[Path, ...] = ()
    try:
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
            collected, figures = steps.fill(files, keeper)
            standing = files.standing
            if save_imatrix is not None and not (skip_existing and files.imatrix_stands):
                files.finish()
                job.source.refuse_changed()
                write_imatrix(save_imatrix, collected.imatrix, is_again=not force)
    except _WorseError as worse:
        collected, figures = worse.collected, worse.figures
        job = plain(collected.imatrix)
        place = job.files[0].path.name
        note(Remark(place, f"is made without error feedback, which is worse here ({figures.in_words})"))
        run(job, jobs=jobs, force=force, restart=True, progress=progress, note=note)
        if save_imatrix is not None:
            write_imatrix(save_imatrix, collected.imatrix, is_again=not force)
    seconds = Seconds(wall=time.monotonic() - started)
    written = tuple(map(file_figures, job.outputs))
    read = job.source.bytes_read - read_before
    return ExportResult(written, read, seconds, collected, figures, standing, save_imatrix)


@dataclass(frozen=True)
class _Run:
    """The steps of the export, over open files."""

    job: ExportJob
    calibration: Calibration
    text: FeedbackText
    jobs: int | None
    progress: OnProgress

    def fill(self, files: OpenFiles, keeper: StateFile) -> tuple[Collected, FeedbackFigures]:
        """Write all tensors, and judge them.

        Raises:
            _WorseError: the plain encoding is better; nothing is kept.
        """
        (plan,) = self.job.plans
        qtypes = {  # blocks that keep their type are copied, as they are without feedback
            planned.spec.name: planned.qtype
            for planned in plan.tensors
            if planned.qtype != planned.spec.qtype and planned.qtype not in NUMPY_TYPES
        }
        compile_kernels(self.job.plans, self.job.weighted, self.progress)
        compiling.compile_kernels(qtypes.values(), self.progress)
        _forget_torn(keeper, files, self.job, qtypes)

        def take(aim: Aim, fitted: Fitted) -> None:
            whole = (0, aim.spec.n_row)
            # Where no token has reached it, the pass has not seen what is not finite.
            refuse_non_finite(aim.spec, aim.xid, whole, aim.weights.cpu().numpy())
            for slab in slabs_of_matrix(self.job.source, aim.spec, aim.xid):
                blocks = np.ascontiguousarray(fitted.blocks[slice(*slab.rows)])
                files.write(EncodedSlab(slab, {aim.qtype: blocks}, 0.0, 0.0))

        found = feed_back(
            self.job.source,
            self.text,
            qtypes,
            take,
            forward=self.calibration.settings,
            jobs=self.jobs,
            keeper=_DurableKeeper(keeper, files),
            progress=self.progress,
        )
        file = "" if self.job.imatrix is None else self.job.imatrix.file
        imatrix = replace(found.imatrix, file=file)
        collected = Collected(imatrix, found.load, found.timings)
        self._write_rest(files, imatrix)
        ratio = self._judged(files, imatrix)
        figures = FeedbackFigures.of(found.fits, self.text.judged.n_chunk, *ratio)
        if figures.is_worse:
            keeper.remove()
            for sink in files.sinks:
                sink.discard()
            raise _WorseError(figures, collected)
        return collected, figures

    def _write_rest(self, files: OpenFiles, imatrix: Imatrix) -> None:
        """Encode plainly what belongs to no layer, or has no blocks."""
        for slab in slabs_of(self.job.source):
            if files.lacking(slab):
                name = slab.spec.name
                guide = imatrix.guide(name, slab.xid) if name in imatrix.entries else None
                files.write(encode_slab(SlabUnit(self.job.source, slab, files.types_for(slab), guide)))

    def _judged(self, files: OpenFiles, imatrix: Imatrix) -> tuple[float, float]:
        """Mean KL divergence of the file, and of the plain encoding in the same types, on the part that judges."""
        (plan,) = self.job.plans
        shared = SharedSource(self.job.source, 2)
        models = {
            "error feedback": Written(self.job.source, plan, imatrix, files),
            "plain encoding": RoundTrip(shared, plan, imatrix),
        }
        comparison = compare(
            Model(self.job.source.label, shared, plan.n_bytes, plan.bpw),
            [Model(name, source, plan.n_bytes, plan.bpw) for name, source in models.items()],
            [self.text.judged],
            settings=replace(self.calibration.settings, dtype=torch.float32),  # differences are small
            progress=lambda moment: self.progress(replace(moment, stage=f"judging: {moment.stage}")),
        )
        fed_back, plain = (results[0].statistics.kld.value for results in comparison.results)
        return fed_back, plain


@dataclass(frozen=True)
class _DurableKeeper:
    """A keeper of a pass whose layers lie in files: they are durable before the state says that they are done."""

    keeper: StateFile
    files: OpenFiles

    def recall(self, state: PassState) -> None:
        """See `Keeper.recall`."""
        self.keeper.recall(state)

    def keep(self, state: PassState) -> None:
        """See `Keeper.keep`."""
        self.files.sync()
        self.keeper.keep(state)


def _forget_torn(keeper: StateFile, files: OpenFiles, job: ExportJob, qtypes: Mapping[str, QType]) -> None:
    """Remove a state whose layers are not all in the files: they can only be made again from the first layer on."""
    try:
        with opened_state(keeper.path) as archive:
            n_done = int(read_json(archive, "pass")["n_done"])
    except DamagedStateError:  # there is none, or `recall` will say so
        return
    embedding = EMBEDDING
    made_first = {embedding} if encodes_embedding(job.source, qtypes.get(embedding)) else set()
    for slab in slabs_of(job.source):
        name, bid = slab.spec.name, slab.spec.bid
        is_made = name in made_first or (name in qtypes and bid is not None and bid < n_done)
        if is_made and files.lacking(slab):
            keeper.remove()
            return
