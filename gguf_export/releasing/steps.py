"""The steps between the files and the card: what stops a release, and what is found of each file and kept."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from calibration.forward.settings import ForwardSettings
from gguf_export.checking.doctor import doctor
from gguf_export.checking.findings import Finding, Findings
from gguf_export.checking.llama_process import program
from gguf_export.checking.verify import verify
from gguf_export.comparing.measured import results_of
from gguf_export.comparing.merging import merged
from gguf_export.comparing.models import ModelChoice
from gguf_export.comparing.results import Results
from gguf_export.comparing.run import PassSettings, StateSettings, compare
from gguf_export.comparing.texts import cut_choice
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
        TextError: a held-out text is too short, or no dialogues that the template writes.
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
    cut_choice(job.checkpoint, job.held_out)


def verify_all(
    job: ReleaseJob, files: Sequence[FileFigures], record: Record, progress: OnProgress, note: Note
) -> None:
    """Hold each file against the checkpoint, block by block with its importances, and hash it on the way.

    Raises:
        GGUFError: a file is not what it should be; `note` was told why.
    """
    for file in files:
        name = record.name_of(file.path)
        known = record.files.get(name)
        if known is not None and known.verified and known.ftype == file.ftype:
            continue
        digests: dict[Path, str] = {}
        found = verify(
            file.path,
            against=job.checkpoint,
            level="bytes",
            imatrix=job.imatrix,
            digests=digests,
            jobs=job.settings.jobs,
            progress=progress,
        )
        if found.worst == "error":
            _tell(found, note)
            raise GGUFError(str(file.path), f"does not stand up to its checkpoint: {found.summary()}")
        first, *others = file.parts
        record.files[name] = FileRecord(
            file.ftype,
            first.n_bytes,
            digests[first.path],
            found.summary(),
            others={record.name_of(part.path): (part.n_bytes, digests[part.path]) for part in others},
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
        known = record.of_file(file)
        if known.smoke in ("", NOT_RUN) or known.smoke.startswith("failed"):
            record.note(file, smoke=smoke_test(file.path))
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
    keys = {file.ftype: _key(job, record.name_of(file.path), record.of_file(file)) for file in files}
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
        job.held_out,
        PassSettings(forward=ForwardSettings()),
        state=StateSettings.beside(path),
        progress=progress,
        note=note,
    )
    new = results_of(result.comparison)
    results = new if earlier is None else merged([("earlier", earlier), ("new", new)])
    write_text(path, compare_json(results))
    for file in files:
        record.note(file, compared=keys[file.ftype])
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
    holds = {file.ftype for file in files if record.of_file(file).compared == keys[file.ftype]}
    kept = tuple(model for model in stored.models if model.label in holds)
    return replace(stored, models=kept) if kept else None


def _key(job: ReleaseJob, name: str, entry: FileRecord) -> str:
    digests = [digest for _, digest in entry.parts(name).values()]
    return hashlib.sha256(" ".join([job.judged_by, *digests]).encode()).hexdigest()


def _tell(findings: Findings | Sequence[Finding], note: Note) -> None:
    for finding in findings:
        note(Remark(finding.place, finding.message, finding.remedy, finding.setting))
