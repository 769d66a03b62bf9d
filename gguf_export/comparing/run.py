"""Quantized files beside their base: which models there are, by which text they are judged, and the one pass."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from calibration.forward.saved_state import Keeper
from calibration.forward.settings import ForwardSettings
from calibration.forward.stored import can_decode
from calibration.importance.imatrix import Imatrix
from calibration.judging.logits_file import LogitsFile, is_logits_file
from calibration.judging.round_trip import RoundTrip, SharedSource
from calibration.judging.side_by_side import Activations, Comparison, Model, compare, refuse_other_model
from calibration.text.chunks import N_CTX, Chunks, make_chunks, read_text
from gguf_export.vocab.same_tokens import bos_of, refuse_other_vocabulary, tokenizer_of, vocabulary_of
from gguf_export.writing import fingerprint, pass_state
from gguf_export.writing.remarks import missing_remarks, plan_remarks, thin_remarks
from quantize.containers.untrusted import quoted
from quantize.exceptions import GGUFError, LogitsError, MoeGgufError, TextError
from quantize.recipes.recipe import Recipe, make_plan
from quantize.sources.checkpoint import Checkpoint, open_checkpoint
from quantize.sources.gguf_file import GGUFFile
from quantize.telling import Note, OnProgress, Remark, discard, silent

__all__ = ["CompareJob", "NamedText", "fingerprint_of", "prepare", "run"]

ROUND_TRIP = "(round trip)"
"""Stands behind the name of a type that was judged without writing a file."""


@dataclass(frozen=True)
class NamedText:
    """A file of text and the name under which it is reported."""

    name: str
    path: Path


@dataclass(frozen=True)
class CompareJob:
    """Everything that was asked for, opened and found to fit together; no weight is read yet."""

    base: Model | LogitsFile
    models: tuple[Model, ...]
    texts: tuple[Chunks, ...]
    sources: tuple[Checkpoint | GGUFFile, ...]
    imatrix: Imatrix | None = None

    @property
    def bytes_read(self) -> int:
        """Bytes of weights read so far from all files."""
        return sum(source.bytes_read for source in self.sources)


def prepare(
    paths: Sequence[Path],
    texts: Sequence[NamedText] = (),
    *,
    base: Path | None = None,
    recipes: Sequence[Recipe] = (),
    imatrix: Imatrix | None = None,
    n_ctx: int = N_CTX,
    n_chunk: int | None = None,
    note: Note = discard,
) -> CompareJob:
    """Open the models and cut the texts.

    Args:
        paths: GGUF files to be judged, and the folder of their checkpoint, which is the base where no other is given.
        texts: at least one, unless the base is a file of logits, which brings its own.
        base: a GGUF file, or a file that llama-perplexity --save-all-logits wrote. The checkpoint's folder then only
            serves `recipes` and the tokenizer.
        recipes: file types to be judged without writing them, from the checkpoint.
        imatrix: importances for `recipes`.
        n_ctx: tokens of a chunk.
        n_chunk: of each text the first so many chunks.
        note: told, in one line each, what a careful reader wants to know.

    Raises:
        MoeGgufError: a file is damaged, of an unknown type or of another model, or given twice, as may be a type; a
            tokenizer differs; a text is short, or called as another.
    """
    _refuse_twins(texts)
    _refuse_repeated(paths, recipes)
    checkpoint = _only_checkpoint(paths)
    files = [open_file(path, note) for path in paths if not path.is_dir()]
    if recipes and checkpoint is None:
        raise MoeGgufError("to judge a type without a file (-t), give the folder of the checkpoint")
    if not files and not recipes:
        raise MoeGgufError("nothing to compare: give GGUF files, or types with -t")
    logits = LogitsFile(base) if base is not None and is_logits_file(base) else None
    base_file = open_file(base, note) if base is not None and logits is None else None
    shared = None if checkpoint is None else SharedSource(checkpoint, len(recipes) + (base is None))
    found_base = logits or _base_model(base_file, checkpoint, shared)
    models = [_file_model(file) for file in files]
    if checkpoint is not None and shared is not None:
        models += _round_trips(checkpoint, shared, recipes, imatrix, note)
    for model in models:
        if isinstance(found_base, Model):
            refuse_other_model(found_base, model)
    sources = tuple(source for source in (checkpoint, base_file, *files) if source is not None)
    _refuse_other_vocabularies(sources)
    chunks = (
        _cut(texts, sources[0], n_ctx, n_chunk)
        if logits is None
        else [_own_text(logits, sources[0], texts, n_chunk)]
    )
    return CompareJob(found_base, tuple(models), tuple(chunks), sources, imatrix)


def run(
    prepared: CompareJob,
    *,
    activations: Activations = "exact",
    settings: ForwardSettings | None = None,
    keeper: Keeper | None = None,
    progress: OnProgress = silent,
) -> Comparison:
    """The pass itself: see `calibration.judging.side_by_side.compare`."""
    return compare(
        prepared.base,
        prepared.models,
        prepared.texts,
        activations=activations,
        settings=settings,
        keeper=keeper,
        progress=progress,
    )


def fingerprint_of(
    prepared: CompareJob, activations: Activations, settings: ForwardSettings
) -> dict[str, str]:
    """All that decides what `run` finds, by names that a person understands."""
    models = [
        (model.name, [(spec.name, spec.qtype.name) for spec in model.source.specs()])
        for model in (prepared.base, *prepared.models)
        if isinstance(model, Model)
    ]
    found = pass_state.fingerprint(prepared.texts, settings) | {
        "activations": activations,
        "importance matrix": fingerprint.of_imatrix(prepared.imatrix),
        "choice of models": fingerprint.hashed([json.dumps(models).encode()]),
    }
    if isinstance(prepared.base, LogitsFile):
        size = prepared.base.path.stat()
        found[f"file {prepared.base.path}"] = f"{size.st_size} {size.st_mtime_ns}"
    for source in prepared.sources:
        if isinstance(source, Checkpoint):
            found["checkpoint"] = fingerprint.of_checkpoint(source)
        else:
            found[f"file {source.path}"] = fingerprint.of_gguf(source)
    return found


def open_file(path: Path, note: Note) -> GGUFFile:
    """A GGUF file, whole and of types that can be decoded.

    Raises:
        GGUFError: it is not.
    """
    file = GGUFFile(path)
    n_parts = file.keys.get("split.count", 0)
    if isinstance(n_parts, int) and n_parts > 1:
        raise GGUFError(f"{path}: one of {n_parts} parts; join them with llama-gguf-split --merge")
    slow = set()
    for spec in file.specs():
        known = can_decode(spec.qtype)
        if known is None:
            raise GGUFError(f"{path}: {spec.name}: tensor type {spec.qtype.name} cannot be decoded here")
        if not known:
            slow.add(spec.qtype.name)
    if slow:
        note(f"{path}: {', '.join(sorted(slow))} is decoded by the gguf library, slowly")
    return file


def _refuse_twins(texts: Sequence[NamedText]) -> None:
    """Two texts of one name could not be told apart in any report."""
    names = [text.name for text in texts]
    for name in names:
        if names.count(name) > 1:
            raise TextError(f"two texts are called {quoted(name)}; name them with --text NAME=FILE")


def _refuse_repeated(paths: Sequence[Path], recipes: Sequence[Recipe]) -> None:
    """What is measured twice costs its time twice, and reports could not tell the two apart."""
    seen: set[Path] = set()
    for path in paths:
        if path.resolve() in seen and not path.is_dir():
            raise MoeGgufError(f"{path}: is given twice; give each file once")
        seen.add(path.resolve())
    names = [recipe.ftype.name for recipe in recipes]
    for name in names:
        if names.count(name) > 1:
            raise MoeGgufError(f"-t {name}: is given twice; give each type once")


def _only_checkpoint(paths: Sequence[Path]) -> Checkpoint | None:
    folders = [path for path in paths if path.is_dir()]
    if len(folders) > 1:
        raise MoeGgufError(f"{folders[1]}: one checkpoint is enough, {folders[0]} is the first")
    return open_checkpoint(folders[0]) if folders else None


def _base_model(file: GGUFFile | None, checkpoint: Checkpoint | None, shared: SharedSource | None) -> Model:
    if file is not None:
        return _file_model(file)
    if checkpoint is None or shared is None:
        raise MoeGgufError(
            "nothing to compare with: give the folder of the checkpoint, or --base with a GGUF file or with a file of "
            "llama-perplexity --save-all-logits"
        )
    n_elements = sum(spec.n_elements for spec in checkpoint.specs())
    return Model(str(checkpoint.path), shared, checkpoint.n_bytes, 8 * checkpoint.n_bytes / n_elements)


def _file_model(file: GGUFFile) -> Model:
    n_elements = sum(spec.n_elements for spec in file.specs())
    n_bytes = sum(stored.n_bytes for stored in file.tensors.values())
    return Model(str(file.path), file, file.n_bytes, 8 * n_bytes / n_elements)


def _round_trips(
    checkpoint: Checkpoint,
    shared: SharedSource,
    recipes: Sequence[Recipe],
    imatrix: Imatrix | None,
    note: Note,
) -> list[Model]:
    """The types that no file is written of; what is said of their plans is what `export` says of its own."""
    if not recipes:
        return []
    specs = checkpoint.specs()
    remarks: list[Remark | str] = [] if imatrix is None else [*imatrix.check(specs)]
    plans = {
        recipe.ftype.name: make_plan(specs, checkpoint.hparams, recipe, has_imatrix=imatrix is not None)
        for recipe in recipes
    }
    remarks += plan_remarks(plans)
    remarks += missing_remarks(list(plans.values()), imatrix)
    remarks += thin_remarks(imatrix)
    for remark in remarks:
        note(remark)
    return [
        Model(f"{name} {ROUND_TRIP}", RoundTrip(shared, plan, imatrix), plan.n_bytes, plan.bpw)
        for name, plan in plans.items()
    ]


def _refuse_other_vocabularies(sources: Sequence[Checkpoint | GGUFFile]) -> None:
    first, *others = [vocabulary_of(source) for source in sources]
    for other in others:
        refuse_other_vocabulary(first, other)


def _own_text(
    logits: LogitsFile, cutter: Checkpoint | GGUFFile, texts: Sequence[NamedText], n_chunk: int | None
) -> Chunks:
    if texts:
        raise LogitsError(f"{logits.path}: brings its own text; leave --text out")
    return Chunks((logits.path.stem,), logits.tokens[:n_chunk], bos_of(cutter))


def _cut(
    texts: Sequence[NamedText], cutter: Checkpoint | GGUFFile, n_ctx: int, n_chunk: int | None
) -> list[Chunks]:
    if not texts:
        raise TextError("there is no text to judge by; give one with --text FILE")
    tokenizer = tokenizer_of(cutter)
    found = []
    for text in texts:
        chunks = make_chunks([read_text(text.path)], tokenizer, n_ctx=n_ctx, n_chunk=n_chunk)
        found.append(replace(chunks, names=(text.name,)))
    return found
