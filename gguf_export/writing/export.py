"""One read of a checkpoint becomes one or several GGUF files: `export`, and `plan`, which says what it would do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from calibration.importance.imatrix import Imatrix
from calibration.importance.imatrix_files import load_imatrix
from gguf_export.files.outputs import refuse_outputs
from gguf_export.metadata.file_names import find_publisher, lmstudio_root
from gguf_export.writing.job import ExportJob, prepare
from gguf_export.writing.journal import journal_path
from gguf_export.writing.remarks import export_remarks
from gguf_export.writing.results import ExportPlan, ExportResult, FileFigures, file_figures
from gguf_export.writing.run import run
from quantize.containers.untrusted import label
from quantize.engine import Engine
from quantize.exceptions import ImatrixError, OutputError, RecipeError
from quantize.recipes.ftypes import ftype
from quantize.recipes.recipe import Recipe
from quantize.sources.checkpoint import Checkpoint, open_checkpoint
from quantize.sources.checkpoint_files import files_of_model
from quantize.telling import Note, OnProgress, discard, silent

if TYPE_CHECKING:  # these import torch, and an export without text needs no torch
    from calibration.forward.settings import ForwardSettings
    from calibration.text.text_settings import TextSettings
    from gguf_export.writing.calibrated import Calibration

__all__ = ["ExportJob", "ExportPlan", "ExportResult", "FileFigures", "export", "plan", "prepare", "run"]


def export(
    model: Path | str,
    types: str | Sequence[str | Recipe],
    folder: Path | str | None = None,
    *,
    imatrix: Imatrix | Path | str | None = None,
    prior: float = 0.0,
    text: TextSettings | Path | str | None = None,
    forward: ForwardSettings | None = None,
    save_imatrix: Path | None = None,
    name: str | None = None,
    override_kv: Sequence[str] = (),
    pre: str | None = None,
    lmstudio: bool = False,
    publisher: str | None = None,
    jobs: int | None = None,
    engine: Engine | None = None,
    force: bool = False,
    restart: bool = False,
    progress: OnProgress = silent,
    note: Note = discard,
) -> ExportResult:
    """Quantize the checkpoint in folder `model` to one GGUF file for each file type, from one read of its shards.

    Args:
        model: the folder of a Hugging Face checkpoint.
        types: the name of a file type such as "Q4_K_M", or several names; recipes where names do not suffice.
        folder: where the files go; by default the current folder, or LM Studio's with `lmstudio`.
        imatrix: importances, or the file that holds them.
        prior: draws an expert's importances toward its layer's mean with the weight of so many tokens.
        text: calibrate with this text on the way, from the same read; a file, or `TextSettings`.
        forward: how the text passes through the model.
        save_imatrix: keep the importances that the text gave in this file.
        name: `general.name`, and the base of the file names; by default found as llama.cpp's converter finds it.
        override_kv: metadata to set, spelled KEY=TYPE:VALUE as llama-quantize takes it.
        pre: name of the pre-tokenizer, where it is not recognised.
        lmstudio: put the files where LM Studio looks: `folder/publisher/model/file.gguf`.
        publisher: by default from config.json.
        jobs: threads that read, encode and write; by default one for each processor.
        engine: reads and encodes in the place of threads, where there is no text.
        force: replace files that exist.
        restart: use nothing of an earlier run that was stopped.
        progress: called with the progress in bytes of the checkpoint, or in tokens of the text.
        note: given remarks on fallbacks, and on what is continued or kept.

    Raises:
        RecipeError: a setting means nothing beside the others.
        MoeGgufError: see `prepare`, `run` and `run_calibrated`.

    >>> made = export(demo_model, "Q4_K_M", folder)
    >>> made.files[0].path.name, made.files[0].ftype
    ('Demo-4x2.0M-Q4_K_M.gguf', 'Q4_K_M')
    """
    request = _Request(
        model,
        types,
        folder,
        imatrix,
        prior,
        text,
        forward,
        save_imatrix,
        name,
        override_kv,
        pre,
        lmstudio,
        publisher,
    )
    if engine is not None and text is not None:
        raise RecipeError(
            "engine", "means nothing with a text, which threads of this process encode", "leave it out"
        )
    request.refuse_outputs([])  # a long text is cut before the names of the files are known
    job, calibration = request.prepared()
    request.refuse_outputs([file.path for file in job.files])
    for remark in export_remarks(job, is_counted=calibration is None):
        note(remark)
    if calibration is None:
        return run(job, jobs=jobs, engine=engine, force=force, restart=restart, progress=progress, note=note)
    from gguf_export.writing.calibrated import run_calibrated

    return run_calibrated(
        job,
        calibration,
        save_imatrix=save_imatrix,
        jobs=jobs,
        force=force,
        restart=restart,
        progress=progress,
        note=note,
    )


def plan(
    model: Path | str,
    types: str | Sequence[str | Recipe],
    folder: Path | str | None = None,
    *,
    imatrix: Imatrix | Path | str | None = None,
    prior: float = 0.0,
    text: TextSettings | Path | str | None = None,
    forward: ForwardSettings | None = None,
    save_imatrix: Path | None = None,
    name: str | None = None,
    override_kv: Sequence[str] = (),
    pre: str | None = None,
    lmstudio: bool = False,
    publisher: str | None = None,
) -> ExportPlan:
    """Say what `export` would write: names, types, sizes and offsets; no weight is read and nothing is written.

    The arguments are those of `export`.

    Raises:
        MoeGgufError: see `prepare`.

    >>> planned = plan(demo_model, ["Q8_0", "Q4_K_M"])
    >>> [(file.ftype, round(file.bpw, 1)) for file in planned.files]
    [('Q8_0', 8.5), ('Q4_K_M', 4.9)]
    """
    request = _Request(
        model,
        types,
        folder,
        imatrix,
        prior,
        text,
        forward,
        save_imatrix,
        name,
        override_kv,
        pre,
        lmstudio,
        publisher,
    )
    job, calibration = request.prepared()
    remarks = export_remarks(job, is_counted=calibration is None)
    return ExportPlan(tuple(map(file_figures, job.files)), tuple(remarks))


@dataclass(frozen=True)
class _Request:
    """The arguments of `export` that decide what is written."""

    model: Path | str
    types: str | Sequence[str | Recipe]
    folder: Path | str | None
    imatrix: Imatrix | Path | str | None
    prior: float
    text: TextSettings | Path | str | None
    forward: ForwardSettings | None
    save_imatrix: Path | None
    name: str | None
    override_kv: Sequence[str]
    pre: str | None
    lmstudio: bool
    publisher: str | None

    def prepared(self) -> tuple[ExportJob, Calibration | None]:
        """The job and, where there is a text, the pass that gives its importances."""
        self._refuse_idle()
        checkpoint = open_checkpoint(self.model)
        types = [self.types] if isinstance(self.types, str) else self.types
        recipes = [recipe if isinstance(recipe, Recipe) else Recipe(ftype(recipe)) for recipe in types]
        calibration = self._calibration(checkpoint)
        job = prepare(
            checkpoint,
            recipes,
            Path(self.folder or (lmstudio_root() if self.lmstudio else ".")),
            imatrix=self._importances(checkpoint, calibration),
            name=self.name,
            override_kv=self.override_kv,
            pre=self.pre,
            publisher=self._publisher(checkpoint),
        )
        return job, calibration

    def refuse_outputs(self, paths: Sequence[Path]) -> None:
        """Refuse files that could not be written, or would replace something that is read.

        Args:
            paths: the GGUF files, as far as they are known.

        Raises:
            OutputError: see `files.outputs.refuse_outputs`. Whether files exist is asked when an earlier run's work is
                known.
        """
        own = [journal_path(path) for path in paths]
        inputs = files_of_model(Path(self.model))
        if isinstance(self.imatrix, (str, Path)):
            inputs.append(Path(self.imatrix))
        if self.text is not None:
            from calibration.text.text_settings import TextSettings
            from gguf_export.writing.state_file import state_path, working_files

            own += [file for path in paths[:1] for file in working_files(state_path(path))]
            inputs += TextSettings.of(self.text).files
        named = [] if self.save_imatrix is None else [self.save_imatrix]
        refuse_outputs(named, force=True, made=paths, own=own, inputs=inputs)

    def _refuse_idle(self) -> None:
        """Refuse settings that mean nothing beside the others."""
        if self.text is None:
            for setting, value in (("save_imatrix", self.save_imatrix), ("forward", self.forward)):
                if value is not None:
                    raise RecipeError(
                        setting, "means nothing without a text", "give {setting}", setting="text"
                    )
        if self.publisher is not None and not self.lmstudio:
            raise RecipeError(
                "publisher", "means nothing without lmstudio", "give {setting}", setting="lmstudio"
            )
        if self.prior and self.text is None and not isinstance(self.imatrix, (str, Path)):
            raise RecipeError(
                "prior",
                "means nothing without a text or a file of importances",
                "give {setting}",
                setting="imatrix",
            )

    def _publisher(self, checkpoint: Checkpoint) -> str | None:
        if not self.lmstudio:
            return None
        publisher = self.publisher or find_publisher(checkpoint.config)
        if publisher is None:
            raise OutputError(
                f"{checkpoint.label}: config.json",
                "does not say who made the model",
                "name {setting}",
                setting="publisher",
            )
        return publisher

    def _calibration(self, checkpoint: Checkpoint) -> Calibration | None:
        if self.text is None:
            return None
        if self.imatrix is not None:
            raise ImatrixError(
                "", "a text gives importances of its own", "leave {setting} out", setting="imatrix"
            )
        from calibration.forward.settings import ForwardSettings, best_dtype
        from calibration.text.text_settings import TextSettings, cut_text
        from gguf_export.writing.calibrated import Calibration

        chunks = cut_text(checkpoint, TextSettings.of(self.text), self.pre)
        return Calibration(chunks, self.prior, self.forward or ForwardSettings(dtype=best_dtype()))

    def _importances(self, checkpoint: Checkpoint, calibration: Calibration | None) -> Imatrix | None:
        if calibration is not None:
            from gguf_export.writing.calibrated import expected_imatrix

            file = label(self.save_imatrix or "calibrated while exporting")
            return expected_imatrix(checkpoint.specs(), calibration, file)
        if isinstance(self.imatrix, (str, Path)):
            return load_imatrix(self.imatrix, prior=self.prior)
        return self.imatrix
