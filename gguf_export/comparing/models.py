"""Which models are compared: GGUF files, types that no file is written of, and the base that they are held against."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from calibration.importance.imatrix import Imatrix
from calibration.importance.imatrix_files import is_imatrix
from calibration.judging.logits_file import LogitsFile, is_logits_file
from calibration.judging.model import Model, refuse_other_model
from calibration.judging.round_trip import RoundTrip, SharedSource
from calibration.judging.side_by_side import Base
from calibration.text.tokenizer import vocabulary_of
from calibration.text.vocabulary import refuse_other_vocabulary
from gguf_export.comparing.named_files import is_there, split_name
from gguf_export.writing.remarks import imatrix_remarks, plan_remarks
from quantize.containers.gguf_parts import leading_part
from quantize.containers.untrusted import quoted
from quantize.exceptions import ChoiceError
from quantize.recipes.ftypes import ftype
from quantize.recipes.recipe import Recipe, RecipeFacts, make_plan
from quantize.sources.checkpoint import Checkpoint, open_checkpoint
from quantize.sources.gguf_file import GGUFFile
from quantize.sources.hub import local_path
from quantize.sources.model_source import open_gguf
from quantize.telling import Note, Remark, discard
from quantize.tensors import bits_per_weight

__all__ = ["ModelChoice", "OpenModels", "named_paths", "open_models"]

ROUND_TRIP = "(round trip)"
"""Stands behind the name of a type that was judged without writing a file."""


@dataclass(frozen=True)
class ModelChoice:
    """The models that are compared.

    paths: GGUF files to be judged, and the folder of their checkpoint, which is the base where no other is given. Of a
        file that is split the first part is enough; later parts beside it are passed over.
    base: a GGUF file, or a file that llama-perplexity --save-all-logits wrote. The checkpoint's folder then only serves
        `recipes` and the tokenizer.
    recipes: file types to be judged without writing them, from the checkpoint.
    imatrix: importances for `recipes`.
    names: under which reports show some of the models, by path; the others go by what tells their files apart.
    """

    paths: tuple[Path, ...]
    base: Path | None = None
    recipes: tuple[Recipe, ...] = ()
    imatrix: Imatrix | None = None
    names: Mapping[Path, str] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        *paths: str | Path,
        base: str | Path | None = None,
        types: Iterable[str] = (),
        imatrix: Imatrix | None = None,
    ) -> ModelChoice:
        """The choice with models as paths, or as text NAME=FILE, and file types by name.

        Types such as "Q4_K_M" may be in any case, and are made as llama-quantize makes them.

        Raises:
            RecipeError: there is no such type.
            ChoiceError: see `named_paths`.
        """
        recipes = tuple(Recipe(ftype(name)) for name in types)
        plain, names = named_paths(paths)
        return cls(plain, None if base is None else Path(base), recipes, imatrix, names)

    def on_disk(self) -> ModelChoice:
        """The same with folders for the models of the Hub (`local_path`)."""
        base = None if self.base is None else local_path(self.base)
        return replace(self, paths=tuple(map(local_path, self.paths)), base=base)

    def refuse_repeated(self) -> None:
        """Refuse to measure a model twice: it would cost its time twice, and reports could not tell the two apart.

        Raises:
            ChoiceError: a file or a type is given twice.
        """
        seen: set[Path] = set()
        for path in self.paths:
            if path.resolve() in seen and not path.is_dir():
                raise ChoiceError(str(path), "is given twice", "give each file once")
            seen.add(path.resolve())
        names = [recipe.ftype.name for recipe in self.recipes]
        for name in names:
            if names.count(name) > 1:
                raise ChoiceError(name, "is given twice", "give each type once")


def named_paths(models: Iterable[str | Path]) -> tuple[tuple[Path, ...], dict[Path, str]]:
    """The paths of models that are given as paths, or as text NAME=FILE, and the names that some of them have.

    Raises:
        ChoiceError: NAME=FILE can be read in several ways (see `split_name`), or two models have one name.
    """
    paths: list[Path] = []
    names: dict[Path, str] = {}
    for given in models:
        name, file = ("", given) if isinstance(given, Path) else split_name(given, ChoiceError, is_there)
        paths.append(Path(file))
        if name in names.values():
            raise ChoiceError("", f"two models are called {quoted(name)}", "name them apart, as in NAME=FILE")
        if name:
            names[Path(file)] = name
    return tuple(paths), names


@dataclass(frozen=True)
class OpenModels:
    """The models of a `ModelChoice`, found to fit together, and the `sources` whose weights they are."""

    base: Base
    models: tuple[Model, ...]
    sources: tuple[Checkpoint | GGUFFile, ...]


def open_models(choice: ModelChoice, note: Note = discard) -> OpenModels:
    """Open the models, the base first; no weight is read.

    Raises:
        MoeGgufError: a file is damaged, of an unknown type or of another model, or given twice, as may be a type; a
            tokenizer differs.
    """
    choice = choice.on_disk()
    choice.refuse_repeated()
    checkpoint = _only_checkpoint(choice.paths)
    paths = [path for path in choice.paths if not path.is_dir()]
    for path in filter(is_imatrix, tuple(paths)):  # it lies beside the models: `compare MODEL out/*.gguf`
        note(Remark(str(path), "is an importance matrix, no model, and left out"))
        paths.remove(path)
    files = [open_gguf(path) for path in paths if leading_part(path, paths) is None]
    if choice.recipes and checkpoint is None:
        raise ChoiceError(
            "", "a type without a file is judged from its checkpoint", "give the folder of the checkpoint"
        )
    if not files and not choice.recipes:
        raise ChoiceError("", "nothing to compare", "give GGUF files, or types to judge without a file")
    has_logits = choice.base is not None and is_logits_file(choice.base)
    base_file = open_gguf(choice.base) if choice.base is not None and not has_logits else None
    models = [_file_model(file, choice.names) for file in files]
    base: Base | None = None
    if choice.base is not None:
        base = LogitsFile(choice.base) if base_file is None else _file_model(base_file, {})
    if checkpoint is not None:
        shared = SharedSource(checkpoint, len(choice.recipes) + (base is None))
        base = base or _checkpoint_model(checkpoint, shared, choice.names)
        models += _round_trips(checkpoint, shared, choice, note)
    if base is None:
        raise ChoiceError(
            "",
            "nothing to compare with",
            "give the folder of the checkpoint, or with {setting} a GGUF file or a file of llama-perplexity "
            "--save-all-logits",
            setting="base",
        )
    if base.kind == "model":
        for model in models:
            refuse_other_model(base, model)
    sources = tuple(source for source in (checkpoint, base_file, *files) if source is not None)
    _refuse_other_vocabularies(sources)
    return OpenModels(base, tuple(models), sources)


def _only_checkpoint(paths: Sequence[Path]) -> Checkpoint | None:
    folders = [path for path in paths if path.is_dir()]
    if len(folders) > 1:
        raise ChoiceError(str(folders[1]), f"one checkpoint is enough, {folders[0]} is the first")
    return open_checkpoint(folders[0]) if folders else None


def _checkpoint_model(checkpoint: Checkpoint, shared: SharedSource, names: Mapping[Path, str]) -> Model:
    n_elements = sum(spec.n_elements for spec in checkpoint.specs())
    bpw = bits_per_weight(checkpoint.n_bytes, n_elements)
    given = names.get(checkpoint.path, "")
    return Model(str(checkpoint.path), shared, checkpoint.n_bytes, bpw, given_name=given)


def _file_model(file: GGUFFile, names: Mapping[Path, str]) -> Model:
    n_elements = sum(spec.n_elements for spec in file.specs())
    n_bytes = sum(stored.n_bytes for stored in file.tensors.values())
    bpw = bits_per_weight(n_bytes, n_elements)
    return Model(str(file.path), file, file.n_bytes, bpw, given_name=names.get(file.path, ""))


def _round_trips(
    checkpoint: Checkpoint, shared: SharedSource, choice: ModelChoice, note: Note
) -> list[Model]:
    """The types that no file is written of; the remarks on their plans are those that `export` makes of its own."""
    if not choice.recipes:
        return []
    specs, imatrix = checkpoint.specs(), choice.imatrix
    remarks: list[Remark] = [] if imatrix is None else [*imatrix.check(specs)]
    plans = {
        recipe.ftype.name: make_plan(
            specs, RecipeFacts.of(checkpoint.hparams), recipe, imatrix is not None, keeps_blocks=True
        )
        for recipe in choice.recipes
    }
    remarks += plan_remarks(plans)
    remarks += imatrix_remarks(list(plans.values()), imatrix)
    for remark in remarks:
        note(remark)
    return [
        Model(f"{name} {ROUND_TRIP}", RoundTrip(shared, plan, imatrix), plan.n_bytes, plan.bpw, imatrix)
        for name, plan in plans.items()
    ]


def _refuse_other_vocabularies(sources: Sequence[Checkpoint | GGUFFile]) -> None:
    first, *others = [vocabulary_of(source) for source in sources]
    for other in others:
        refuse_other_vocabulary(first, other)
