"""A release, step by step: doctor, one read, verify, compare, errors, smoke test, bundle; each resumes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gguf_export.checking.fit import Fit
from gguf_export.releasing.job import ReleaseJob, prepare
from gguf_export.releasing.record import Record
from gguf_export.releasing.settings import ReleaseSettings
from gguf_export.releasing.smoke import has_failed
from gguf_export.writing.export import ExportPlan, export, plan
from gguf_export.writing.results import FileFigures
from quantize.exceptions import OutputError
from quantize.sources.checkpoint_files import files_of_model
from quantize.telling import Note, OnProgress, Remark, discard, silent

if (
    TYPE_CHECKING
):  # what measures and draws imports torch and matplotlib, and a release that stands needs neither
    from gguf_export.comparing.results import Results
    from gguf_export.releasing.estimate import Estimate

__all__ = ["ReleasePlan", "ReleaseResult", "plan_release", "release"]

LIKELY = ("Q4_K_M", "Q8_0")
"""Types that llama.cpp and Ollama take where a person names none."""


@dataclass(frozen=True)
class ReleasePlan:
    """What a release would write, which file would fit, the front matter of its card, and what it would take."""

    files: ExportPlan
    fit: Fit
    front_matter: str
    folder: Path
    estimate: Estimate = field(compare=False)


@dataclass(frozen=True)
class ReleaseResult:
    """A release that stands.

    files: file type -> file; empty where there was nothing to do.
    failed: file type -> why llama.cpp could not write with that file; such a folder shall not be published.
    """

    folder: Path
    repo: str | None
    files: dict[str, Path] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    results: Results | None = field(default=None, compare=False)

    @property
    def was_done(self) -> bool:
        """Whether there was nothing to do."""
        return not self.files


def plan_release(settings: ReleaseSettings, note: Note = discard) -> ReleasePlan:
    """Say what `release` would make; some rows are encoded to estimate its time, and nothing is written.

    Raises:
        MoeGgufError: see `job.prepare` and `export`.
    """
    from gguf_export.releasing.bundle import fit_by_quality
    from gguf_export.releasing.estimate import estimate
    from gguf_export.releasing.front_matter import front_matter

    job = prepare(settings, note)
    planned = plan(job.model, job.types, job.folder, timed=True, jobs=settings.jobs, **_export_settings(job))
    return ReleasePlan(
        planned,
        fit_by_quality(job, planned.files, None),
        front_matter(job.about, settings.repo),
        job.folder,
        estimate(job, planned),
    )


def release(
    settings: ReleaseSettings,
    *,
    made_by: Callable[[ReleaseJob], str] = lambda job: f"release({job.about.name})",
    progress: OnProgress = silent,
    note: Note = discard,
) -> ReleaseResult:
    """Make the folder that is published: GGUF files, importances, card, plots, report, companions, recipe and sums.

    A step that was done is not done again; where nothing is left to do, nothing is read but small files.

    Args:
        settings: the model, the types, the texts and the words.
        made_by: how the card says that the folder was made; without local paths.
        progress: told the progress of each step.
        note: given remarks, and what `doctor` warns of.

    Raises:
        ChoiceError, TextError: what is asked for cannot be, see `job.prepare`.
        CheckpointError: `doctor` found an error.
        GGUFError: a finished file is not what it should be.
        MoeGgufError: see `export`, `compare` and `write_bundle`.

    >>> few = {"n_chunk": 4, "n_judge_chunk": 1, "license": "mit", "chat_template": "chatml"}
    >>> few |= {"texts": (text.with_name("calibration.txt"),), "judges": (str(text),)}
    >>> release(ReleaseSettings(demo_model, ("Q8_0",), folder, **few)).folder == folder
    True
    """
    job = prepare(settings, note)
    if not settings.force and job.is_done():
        return ReleaseResult(job.folder, settings.repo)
    from gguf_export.releasing.bundle import write_bundle
    from gguf_export.releasing.expert_errors import measure_errors_of_files
    from gguf_export.releasing.steps import check_model, measure, smoke_all, verify_all

    _refuse_inside(job)
    check_model(job, progress, note)
    if not set(LIKELY) & set(job.types):
        _remark_on_types(note)
    if settings.repo is None:
        note(Remark("model.yaml", "is not written: it names a repository", "give {setting}", "repo"))
    made = export(
        job.model,
        job.types,
        job.folder,
        jobs=settings.jobs,
        force=settings.force,
        progress=progress,
        note=note,
        **_export_settings(job),
    )
    files = sorted(made.files, key=lambda file: -file.n_bytes)
    record = Record.of(job.folder, job.source)
    names = {record.name_of(file.path) for file in files}
    for name in record.files.keys() - names:
        note(Remark(name, "is of an earlier release in this folder, and no part of this one", "remove it"))
    record.files = {name: entry for name, entry in record.files.items() if name in names}
    verify_all(job, files, record, progress, note)
    results = measure(job, files, record, progress, note)
    measure_errors_of_files(job, files, record, progress, note)
    smoke_all(job, files, record, progress, note)
    write_bundle(job, files, record, results, made_by(job), progress)
    return ReleaseResult(
        job.folder,
        settings.repo,
        {file.ftype: file.path for file in files},
        _failed(files, record),
        results,
    )


def _export_settings(job: ReleaseJob) -> dict[str, Any]:
    """The arguments of `export` but model, types and folder."""
    from calibration.text.text_settings import TextSettings

    settings = job.settings
    text = TextSettings(
        tuple(text.path for text in job.texts),
        tuple(text.path for text in job.prompts),
        n_chunk=settings.n_chunk,
    )
    return {
        "text": text,
        "save_imatrix": job.imatrix,
        "split_max_size": settings.split_max_size,
        "split_folders": True,
        "name": settings.name,
        "chat_template": settings.chat_template,
    }


def _failed(files: Sequence[FileFigures], record: Record) -> dict[str, str]:
    verdicts = {file.ftype: record.of_file(file).smoke for file in files}
    return {ftype: verdict for ftype, verdict in verdicts.items() if has_failed(verdict)}


def _refuse_inside(job: ReleaseJob) -> None:
    """Refuse a folder in which the checkpoint or a text lies: the card's README.md would replace the checkpoint's.

    Raises:
        OutputError: one lies there.
    """
    folder = job.folder.resolve()
    inputs = [*files_of_model(job.model), *(text.path for text in (*job.texts, *job.judges))]
    for path in inputs:
        if path.absolute().parent.resolve() == folder:
            raise OutputError(
                str(job.folder), f"holds {path.name}, which is read", "choose another folder for the release"
            )


def _remark_on_types(note: Note) -> None:
    message = "neither Q4_K_M nor Q8_0 is among the types: llama.cpp and Ollama look for them where no type is named"
    note(Remark("", message))
