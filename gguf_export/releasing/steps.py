"""The steps between the files and the card: what stops a release, and what is found of each file and kept."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from calibration.forward.settings import ForwardSettings
from gguf_export.checking.checksums import sha256
from gguf_export.checking.doctor import doctor
from gguf_export.checking.findings import Finding, Findings
from gguf_export.checking.llama_process import program
from gguf_export.checking.verify import verify
from gguf_export.comparing.measured import results_of
from gguf_export.comparing.merging import merged
from gguf_export.comparing.models import ModelChoice
from gguf_export.comparing.results import Results
from gguf_export.comparing.run import PassSettings, StateSettings, compare
from gguf_export.comparing.texts import NamedText, TextChoice
from gguf_export.files.disk import write_error
from gguf_export.files.replacing import write_text
from gguf_export.releasing.job import ReleaseJob
from gguf_export.releasing.record import FileRecord, Record
from gguf_export.releasing.smoke import NOT_RUN, smoke_test
from gguf_export.reports.compare_data import compare_json
from gguf_export.reports.compare_read import read_results
from gguf_export.vocab.template_check import absence
from gguf_export.writing.results import FileFigures
from gguf_export.writing.state_file import working_files
from quantize.exceptions import SETTING, CheckpointError, ChoiceError, GGUFError
from quantize.telling import Note, OnProgress, Progress, Remark

__all__ = ["COMPARE_JSON", "check_model", "measure", "smoke_all", "verify_all"]

TEMPLATE = "chat_template"
COMPARE_JSON = "report/compare.json"


def check_model(job: ReleaseJob, progress: OnProgress, note: Note) -> None:
    """Stop at everything that would make the files useless, before the work.

    A chat template that is missing or does not work stops a release, too, unless one was chosen.

    Raises:
        CheckpointError: there are faults; `note` was told each.
    """
    found = doctor(job.model, progress=progress)
    missing = absence(str(job.model), job.model).message
    if job.settings.chat_template is not None:
        found = Findings(finding for finding in found if finding.setting != TEMPLATE)
    errors = [finding for finding in found if finding.severity == "error" or finding.message == missing]
    _tell([finding for finding in found if finding.severity == "warning" and finding not in errors], note)
    if errors:
        _tell(errors[:-1], note)
        last = errors[-1]
        more = f"; {SETTING} none publishes files without one" if last.setting == TEMPLATE else ""
        raise CheckpointError(last.place, last.message, last.remedy + more, setting=last.setting)


def verify_all(
    job: ReleaseJob, files: Sequence[FileFigures], record: Record, progress: OnProgress, note: Note
) -> None:
    """Hold each file against the checkpoint, block by block with the importances that weighed it, and hash it.

    Raises:
        GGUFError: a file is not what it should be; `note` was told why.
    """
    for file in files:
        name = file.path.name
        known = record.files.get(name)
        if known is not None and known.verified and known.ftype == file.ftype:
            continue
        found = verify(
            file.path,
            against=job.checkpoint,
            level="bytes",
            imatrix=job.imatrix,
            jobs=job.settings.jobs,
            progress=progress,
        )
        if found.worst == "error":
            _tell(found, note)
            raise GGUFError(str(file.path), f"does not stand up to its checkpoint: {found.summary()}")
        record.files[name] = FileRecord(
            file.ftype, file.n_bytes, sha256(file.path, progress), found.summary()
        )
        record.save()


def smoke_all(
    job: ReleaseJob, files: Sequence[FileFigures], record: Record, progress: OnProgress, note: Note
) -> None:
    """Let llama.cpp write with each file, where it is installed; a file that fails is told and kept."""
    if program() is None:
        message = f"{NOT_RUN}: no file was tried in llama.cpp, which is not installed"
        note(Remark("smoke test", message, 'pip install "moe-gguf[release]"'))
    for index, file in enumerate(files):
        progress(Progress("smoke test", index, len(files), unit="files"))
        known = record.files[file.path.name]
        if known.smoke in ("", NOT_RUN) or known.smoke.startswith("failed"):
            record.note(file.path.name, smoke=smoke_test(file.path))
    progress(Progress("smoke test", len(files), len(files), unit="files"))


def measure(
    job: ReleaseJob, files: Sequence[FileFigures], record: Record, progress: OnProgress, note: Note
) -> Results:
    """The figures of all files on held-out text: those that are known, and those of the others in one pass.

    Raises:
        MoeGgufError: see `comparing.run.compare`.
    """
    path = job.folder / COMPARE_JSON
    try:
        path.parent.mkdir(exist_ok=True)
    except OSError as error:
        raise write_error(path.parent, error) from error
    keys = {file.path.name: _key(job, record.files[file.path.name].sha256) for file in files}
    earlier = _earlier(path, files, record, keys)
    known = {model.label for model in earlier.models} if earlier else set()
    missing = [file for file in files if file.ftype not in known]
    if not missing:
        assert earlier is not None
        return earlier
    result = compare(
        ModelChoice(
            (job.model, *(file.path for file in missing)),
            names={job.model: job.about.name} | {file.path: file.ftype for file in missing},
        ),
        TextChoice(
            tuple(NamedText(text.name, text.path) for text in job.judges),
            n_chunk=job.settings.n_judge_chunk,
            chat_template=job.settings.chat_template,
        ),
        PassSettings(forward=ForwardSettings()),
        state=StateSettings.beside(path),
        progress=progress,
        note=note,
    )
    new = results_of(result.comparison)
    results = new if earlier is None else merged([("earlier", earlier), ("new", new)])
    write_text(path, compare_json(results))
    for file in files:
        record.files[file.path.name] = replace(record.files[file.path.name], compared=keys[file.path.name])
    record.save()
    for left in working_files(StateSettings.beside(path).path):
        left.unlink(missing_ok=True)
    return results


def _earlier(
    path: Path, files: Sequence[FileFigures], record: Record, keys: dict[str, str]
) -> Results | None:
    """The figures that still hold, of files that are as they were measured; None where there are none."""
    try:
        stored = read_results(path)
    except ChoiceError:
        return None
    holds = {file.ftype for file in files if record.files[file.path.name].compared == keys[file.path.name]}
    kept = tuple(model for model in stored.models if model.label in holds)
    return replace(stored, models=kept) if kept else None


def _key(job: ReleaseJob, digest: str) -> str:
    return hashlib.sha256(f"{job.judged_by} {digest}".encode()).hexdigest()


def _tell(findings: Findings | Sequence[Finding], note: Note) -> None:
    for finding in findings:
        note(Remark(finding.place, finding.message, finding.remedy, finding.setting))
