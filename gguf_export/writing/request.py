"""What is asked of an export: its arguments are checked against each other, and become a job that can be run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from calibration.importance.imatrix import Imatrix
from calibration.importance.imatrix_files import load_imatrix
from calibration.text.chosen_template import AS_IS, NONE, TemplateChoice, choose_template
from gguf_export.files.outputs import refuse_outputs
from gguf_export.metadata.feedback_keys import feedback_keys
from gguf_export.metadata.file_names import find_publisher, lmstudio_root
from gguf_export.vocab.template_check import template_remarks
from gguf_export.writing.job import ExportJob, prepare
from gguf_export.writing.journal import journal_path
from gguf_export.writing.parts import Split
from quantize.containers.untrusted import label, quoted
from quantize.exceptions import ImatrixError, OutputError, RecipeError
from quantize.recipes.ftypes import ftype
from quantize.recipes.layout import PlannedTensor
from quantize.recipes.recipe import Recipe
from quantize.sources.checkpoint_files import files_of_model
from quantize.sources.model_source import ModelFile, open_gguf, open_stored
from quantize.tensors import NUMPY_TYPES
from quantize.tracing import span

if TYPE_CHECKING:  # these import torch, and an export without text needs no torch
    from calibration.forward.settings import ForwardSettings
    from calibration.text.text_settings import TextSettings
    from gguf_export.writing.calibrated import Calibration

__all__ = ["CALIBRATED", "Request"]

CALIBRATED = "calibrated while exporting"
"""What a file calls the importances that weighed it, where no file keeps them."""


@dataclass(frozen=True)
class Request:
    """The arguments of `export` that decide what is written, with their meanings there."""

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
    allow_requantize: bool
    include_weights: Sequence[str]
    exclude_weights: Sequence[str]
    prune_layers: Sequence[int]
    file: Path | str | None
    split_max_size: str | None
    split_max_tensors: int | None
    keep_split: bool
    split_folders: bool = False
    feedback: bool = False
    chat_template: str | None = None

    def prepared(self, *, only_planned: bool = False) -> tuple[ExportJob, Calibration | None]:
        """The job and, where there is a text, the pass that gives its importances; see `prepare`."""
        self._refuse_idle()
        split = self._split()
        source = self._source()
        types = [self.types] if isinstance(self.types, str) else self.types
        recipes = [recipe if isinstance(recipe, Recipe) else Recipe(ftype(recipe)) for recipe in types]
        template = self._template(source)
        calibration = self._calibration(source)
        if calibration is not None and calibration.feedback is not None:
            recipes = [_fed_back(recipe, calibration) for recipe in recipes]
        job = prepare(
            source,
            recipes,
            Path(self.folder or (lmstudio_root() if self.lmstudio else ".")),
            imatrix=self._importances(source, calibration),
            name=self.name,
            override_kv=self.override_kv,
            pre=self.pre,
            template=template,
            publisher=self._publisher(source),
            allow_requantize=self.allow_requantize,
            include_weights=self.include_weights,
            exclude_weights=self.exclude_weights,
            prune_layers=self.prune_layers,
            file=None if self.file is None else Path(self.file),
            split=split,
            only_planned=only_planned,
        )
        if calibration is not None and job.imatrix is None:
            what = "exclude_weights" if self.exclude_weights else "include_weights"
            message = "nothing is left of the importances that the text would give"
            raise ImatrixError("", message, "choose other parts of names for {setting}", setting=what)
        if self.feedback and not any(map(_is_encoded, job.plans[0].tensors)):
            message = "means nothing where no tensor is quantized"
            raise RecipeError(
                "feedback", message, "leave {setting} out, or choose a type", setting="feedback"
            )
        if job.files and self.chat_template != AS_IS:
            place = source.label if template is None else template.place
            told = template_remarks(place, job.files[0].keys, source.path)
            job = replace(job, remarks=(*job.remarks, *(told if self.chat_template != NONE else ())))
        return job, calibration

    def without_text(self, imatrix: Imatrix) -> ExportJob:
        """The job of the same export with importances that its text has given, and without error feedback."""
        given = replace(
            self, imatrix=imatrix, prior=0.0, text=None, forward=None, save_imatrix=None, feedback=False
        )
        return given.prepared()[0]

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
        of_files = [path.parent for path in paths]
        if self.folder is not None:
            of_files.append(Path(self.folder))
        if named and (
            (self.lmstudio and not paths)
            or named[0].absolute().parent in [place.absolute() for place in of_files]
        ):
            paths, named = [*paths, *named], []  # in the folder that is made for the files
        if self.file is not None and not paths and not self._split():
            named.append(Path(self.file))  # a folder that the user names is not made
        refuse_outputs(named, force=True, made=paths, own=own, inputs=inputs)

    def _split(self) -> Split | None:
        """The parts into which each file is cut."""
        split = Split.of(self.split_max_size, self.split_max_tensors, self.keep_split)
        return replace(split, in_folders=self.split_folders) if split is not None else None

    def _source(self) -> ModelFile:
        """The model, opened."""
        source = open_stored(self.model)
        if source.kind == "gguf" and self.pre is not None:
            message = "means nothing for a GGUF file, which has a tokenizer"
            raise RecipeError(
                f"pre-tokenizer {quoted(self.pre)}", message, "leave {setting} out", setting="pre"
            )
        return source if self.text is None or source.kind == "checkpoint" else open_gguf(self.model)

    def _template(self, source: ModelFile) -> TemplateChoice | None:
        """The chat template that was chosen, None for the model's own."""
        if self.chat_template in (None, AS_IS):
            return None
        return choose_template(str(self.chat_template), source.path)

    def _refuse_idle(self) -> None:
        """Refuse settings that mean nothing beside the others."""
        if self.text is None:
            for setting, value in (("save_imatrix", self.save_imatrix), ("forward", self.forward)):
                if value is not None:
                    raise RecipeError(
                        setting, "means nothing without a text", "give {setting}", setting="text"
                    )
        if self.feedback:
            self._refuse_beside_feedback()
        if self.include_weights and self.exclude_weights:
            message = "means nothing where the weights to include are named"
            raise RecipeError("exclude_weights", message, "leave {setting} out", setting="exclude_weights")
        for setting, parts in (
            ("include_weights", self.include_weights),
            ("exclude_weights", self.exclude_weights),
        ):
            if parts and self.imatrix is None and self.text is None:
                raise RecipeError(
                    setting, "means nothing without importances", "give {setting}", setting="imatrix"
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

    def _refuse_beside_feedback(self) -> None:
        """Refuse what error feedback cannot do, or has no use for."""
        if self.text is None:
            raise RecipeError("feedback", "means nothing without a text", "give {setting}", setting="text")
        if not isinstance(self.types, str) and len(self.types) != 1:
            raise RecipeError(
                "feedback", "makes one file at a time, from what its own errors do", "give one type"
            )
        for setting in ("include_weights", "exclude_weights", "prune_layers"):
            if getattr(self, setting):
                raise RecipeError(
                    setting, "means nothing beside feedback", "leave {setting} out", setting=setting
                )

    def _publisher(self, source: ModelFile) -> str | None:
        if not self.lmstudio:
            return None
        stated = find_publisher(source.config) if source.kind == "checkpoint" else None
        publisher = self.publisher or stated
        if publisher is None:
            place = f"{source.label}: config.json" if source.kind == "checkpoint" else source.label
            raise OutputError(place, "does not say who made the model", "name {setting}", setting="publisher")
        return publisher

    def _calibration(self, source: ModelFile) -> Calibration | None:
        if self.text is None:
            return None
        if self.imatrix is not None:
            raise ImatrixError(
                "", "a text gives importances of its own", "leave {setting} out", setting="imatrix"
            )
        from calibration.forward.settings import ForwardSettings, best_dtype
        from calibration.text.text_settings import TextSettings, cut_text
        from gguf_export.writing.calibrated import Calibration

        text = TextSettings.of(self.text)
        if self.chat_template is not None and text.chat_template is None:
            text = replace(text, chat_template=self.chat_template)
        chunks = cut_text(source, text, self.pre)
        forward = self.forward or ForwardSettings(dtype=best_dtype())
        if not self.feedback:
            return Calibration(chunks, self.prior, forward, texts=tuple(text.files))
        from calibration.feedback.fitting import FeedbackSettings
        from calibration.feedback.run import FeedbackText

        parts = FeedbackText.of(chunks, FeedbackSettings(prior=self.prior))
        return Calibration(parts.seen, 0.0, forward, parts, tuple(text.files))

    def _importances(self, source: ModelFile, calibration: Calibration | None) -> Imatrix | None:
        if calibration is not None:
            from gguf_export.writing.calibrated import expected_imatrix

            file = label(self.save_imatrix or CALIBRATED)
            return expected_imatrix(source.specs(), calibration, file)
        if isinstance(self.imatrix, (str, Path)):
            with span("read importances"):
                return load_imatrix(self.imatrix, prior=self.prior)
        return self.imatrix


def _is_encoded(planned: PlannedTensor) -> bool:
    """Whether a tensor gets codes: it is quantized, and not what a GGUF file holds already."""
    return planned.qtype not in (planned.spec.qtype, *NUMPY_TYPES)


def _fed_back(recipe: Recipe, calibration: Calibration) -> Recipe:
    """A recipe whose file says that error feedback chose its codes."""
    if calibration.feedback is None:
        return recipe
    chunks = calibration.chunks
    keys = feedback_keys(calibration.feedback.settings.rounds, chunks.n_token, chunks.names)
    return replace(recipe, stated=(*recipe.stated, *keys))
