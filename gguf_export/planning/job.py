"""A choice of types before its pass: the model, the text, the types that are allowed and the bytes that there are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from calibration.forward.settings import ForwardSettings, best_dtype
from calibration.importance.imatrix import Imatrix
from calibration.importance.imatrix_files import load_imatrix
from calibration.judging.held_out import hold_out, spread
from calibration.text.chosen_template import AS_IS, TemplateChoice, choose_template
from calibration.text.chunks import Chunks
from calibration.text.text_settings import TextSettings, cut_text
from gguf_export.files.sizes import size_in_words
from gguf_export.metadata.feedback_keys import feedback_keys
from gguf_export.metadata.type_keys import FISHER, type_keys
from gguf_export.planning.budget import Budget
from gguf_export.planning.mixtures import CANDIDATES, nearest_ftype
from gguf_export.writing.calibrated import Calibration, expected_imatrix
from gguf_export.writing.job import ExportJob, prepare
from quantize.exceptions import RecipeError
from quantize.recipes.ftypes import Ftype
from quantize.recipes.layout import PlannedTensor, padded
from quantize.recipes.left_alone import FLOATS, allows_quantization
from quantize.recipes.recipe import Recipe, candidates_for
from quantize.recipes.tensor_types import parse_qtype
from quantize.sources.model_source import ModelFile, open_source
from quantize.telling import Note, discard
from quantize.tensors import QType

__all__ = ["N_HELD_OUT", "Naming", "TypeJob", "prepare_types"]

N_HELD_OUT = 8
"""Chunks that the prediction is held against; half the tokens of each are scored."""


@dataclass(frozen=True)
class Naming:
    """What the file will say of itself, with the meanings of `export`: it decides the size of the header."""

    name: str | None = None
    override_kv: Sequence[str] = ()
    pre: str | None = None
    feedback: bool = False
    chat_template: str | None = None


@dataclass(frozen=True)
class TypeJob:
    """A choice of types that is prepared: see `prepare_types`."""

    source: ModelFile
    budget: Budget
    ftype: Ftype
    candidates: tuple[QType, ...]
    fit: Chunks
    """The text without what is held out."""
    judged: Chunks | None
    imatrix: Imatrix | None
    """None: the pass collects it."""
    expected: Imatrix
    """What the plan and the keys of the file follow from, whether it holds its sums already or not."""
    settings: ForwardSettings
    naming: Naming

    def exported(self, recipe: Recipe, imatrix: Imatrix | None = None) -> ExportJob:
        """The export of the model by a recipe, with importances or such as the pass will collect."""
        return prepare(
            self.source,
            [recipe],
            Path(),
            imatrix=self.expected if imatrix is None else imatrix,
            name=self.naming.name,
            override_kv=self.naming.override_kv,
            pre=self.naming.pre,
            template=self._template,
        )

    @cached_property
    def _template(self) -> TemplateChoice | None:
        choice = self.naming.chat_template
        return None if choice in (None, AS_IS) else choose_template(str(choice), self.source.path)

    @cached_property
    def usual(self) -> ExportJob:
        """The export with the file type's own types."""
        return self.exported(Recipe(self.ftype))

    @cached_property
    def header_bytes(self) -> int:
        """Bytes before the first tensor of a file with chosen types, which says more of itself, whatever they are."""
        stated = type_keys(FISHER, 0, 0.0)
        if self.naming.feedback:
            stated += feedback_keys(0, 0, self.fit.names)
        return len(self.exported(Recipe(self.ftype, stated=stated)).files[0].header)

    @cached_property
    def free(self) -> tuple[PlannedTensor, ...]:
        """The tensors whose type is chosen, as the file type plans them; norms, routers and the like are not."""
        tensors = self.usual.plans[0].tensors
        return tuple(planned for planned in tensors if allows_quantization(planned.spec, self.source.arch))

    def allowed(self, planned: PlannedTensor) -> dict[QType, int]:
        """The types that a tensor may take, each with the bytes that it counts against the budget.

        Where all candidates need importances and it has none, it keeps the file type's.
        """
        spec = planned.spec
        qtypes = candidates_for(spec, self.candidates, spec.name in self.expected.entries)
        counted = {qtype: self._counted(replace(spec, qtype=qtype).n_bytes) for qtype in qtypes}
        return counted or self.kept(planned)

    def kept(self, planned: PlannedTensor) -> dict[QType, int]:
        """The type that the file type gives a tensor, as `allowed` tells of several."""
        return {planned.qtype: self._counted(planned.n_bytes)}

    @cached_property
    def room(self) -> int:
        """Bytes for the tensors that are free.

        Raises:
            RecipeError: they do not fit, not even in the smallest of their types.
        """
        plan, free = self.usual.plans[0], self.free
        fixed = sum(self._counted(planned.n_bytes) for planned in plan.tensors)
        fixed -= sum(self._counted(planned.n_bytes) for planned in free)
        if self.budget.bpw is not None:
            room = int(self.budget.bpw * sum(planned.spec.n_elements for planned in plan.tensors) / 8) - fixed
        else:
            room = (self.budget.size or self.usual.files[0].n_bytes) - self.header_bytes - fixed
        least = sum(min(self.allowed(planned).values()) for planned in free)
        if least > room:
            setting = self.budget.setting
            raise RecipeError(
                self.source.label,
                f"its tensors take {size_in_words(least)} in the smallest types that are allowed, and the budget "
                f"leaves {size_in_words(max(0, room))} for them",
                "give {setting} more, or allow smaller types",
                setting=setting,
            )
        return room

    def _counted(self, n_bytes: int) -> int:
        """Bytes of a tensor as the budget counts them: padding is part of a file, not of bits per weight."""
        return n_bytes if self.budget.bpw is not None else padded(n_bytes)


def prepare_types(
    model: Path | str,
    text: TextSettings,
    budget: Budget,
    *,
    candidates: Sequence[str] = (),
    imatrix: Imatrix | Path | str | None = None,
    imatrix_label: str = "",
    prior: float = 0.0,
    n_held_out: int = N_HELD_OUT,
    forward: ForwardSettings | None = None,
    naming: Naming | None = None,
    note: Note = discard,
) -> TypeJob:
    """Open the model, cut the text, and find out what there is to choose; no weight is read.

    Args:
        imatrix_label: what the file calls importances that the pass collects.
        model, text, candidates, imatrix, prior, n_held_out, forward, naming, note: see `plan_types`.

    Raises:
        RecipeError: a candidate is unknown or no quantized type, or the budget is less than the smallest of them take.
        MoeGgufError: the model, the text or the importances cannot be used.
    """
    naming = naming or Naming()
    qtypes = tuple(parse_qtype(name) for name in candidates) or CANDIDATES
    for qtype in qtypes:
        if qtype in FLOATS:
            raise RecipeError(
                qtype.name, "is no quantized type", "choose {setting} among others", setting="candidates"
            )
    source = open_source(model)
    text = TextSettings.of(text)
    if naming.chat_template is not None and text.chat_template is None:
        text = replace(text, chat_template=naming.chat_template)
    fit, judged = _parted(cut_text(source, text, naming.pre), n_held_out)
    settings = forward or ForwardSettings(dtype=best_dtype())
    given = load_imatrix(imatrix, prior=prior) if isinstance(imatrix, (str, Path)) else imatrix
    expected = given or expected_imatrix(source.specs(), Calibration(fit, prior, settings), imatrix_label)
    ftype = budget.like or nearest_ftype(source, (), bpw=budget.bpw, n_bytes=budget.size, qtypes=qtypes)
    job = TypeJob(source, budget, ftype, qtypes, fit, judged, given, expected, settings, naming)
    for remark in job.usual.remarks:
        note(remark)
    _ = job.room
    return job


def _parted(chunks: Chunks, n_held_out: int) -> tuple[Chunks, Chunks | None]:
    """The chunks to choose by and, evenly spread among them, those to measure on: at most a fifth."""
    if not n_held_out:
        return chunks, None
    fit, judged = hold_out(chunks, every=max(5, chunks.n_chunk // n_held_out))
    return fit, spread(judged, n_held_out)
