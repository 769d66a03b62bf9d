"""The contents of a checkpoint or a GGUF file, from headers alone; or of an importance matrix."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from gguf_export.checking.imatrix_facts import ImatrixFacts, imatrix_facts
from gguf_export.files.sizes import size_in_words
from gguf_export.metadata.feedback_keys import feedback_in_words
from gguf_export.metadata.type_keys import choice_in_words
from quantize.containers.gguf import MAGIC
from quantize.containers.gguf_parts import Place, first_part
from quantize.containers.keys import elements
from quantize.containers.untrusted import label, regular_size
from quantize.exceptions import GGUFError
from quantize.ggml_types import FileType
from quantize.hparams import Hparams
from quantize.sources.checkpoint import open_checkpoint
from quantize.sources.gguf_file import GGUFFile
from quantize.sources.hub import local_path
from quantize.tensors import TensorSpec, bits_per_weight

__all__ = ["ModelFacts", "TensorFacts", "TypeFacts", "ftype_name", "in_words", "inspect"]

MAX_SHOWN = 64  # elements of an array


@dataclass(frozen=True)
class TensorFacts:
    """One tensor; its shape is in NumPy's order."""

    name: str
    shape: tuple[int, ...]
    qtype: str
    n_bytes: int


@dataclass(frozen=True)
class TypeFacts:
    """All tensors of one type together."""

    qtype: str
    n_tensors: int
    n_elements: int
    n_bytes: int


@dataclass(frozen=True)
class ModelFacts:
    """The figures of a model; sizes are bytes of weights, `keys` the metadata of a GGUF file, long arrays cut."""

    path: str
    kind: Literal["checkpoint", "gguf"]
    name: str
    ftype: str
    hparams: Hparams
    n_elements: int
    n_bytes: int
    types: tuple[TypeFacts, ...]
    tensors: tuple[TensorFacts, ...]
    keys: Mapping[str, Any]
    is_vocabulary: bool = False
    """Whether a GGUF file holds a tokenizer and no weights; `hparams` are then those of the model that it is for."""
    n_parts: int = 1
    """Files in which a GGUF lies."""
    part: int | None = None
    """Which of them this is, counted from 1, where it is a later part: tensors, sizes and keys are its own, all else
    is the model's."""

    @property
    def bpw(self) -> float:
        """Bits per weight over all tensors."""
        return bits_per_weight(self.n_bytes, self.n_elements)

    def as_dict(self) -> dict[str, Any]:
        """Everything, as JSON takes it."""
        return {**asdict(self), "bpw": self.bpw}


def inspect(path: str | Path) -> ModelFacts | ImatrixFacts:
    """Look at a checkpoint folder or a GGUF file, of which no weight is read; or at an importance matrix.

    Raises:
        CheckpointError, ImatrixError: it is damaged.
        GGUFError: it is damaged, or there is nothing.

    >>> facts = inspect(demo_model)
    >>> facts.hparams.n_expert, facts.hparams.n_expert_used, len(facts.tensors)
    (4, 2, 33)
    """
    path = local_path(path)
    if path.is_dir():
        return _checkpoint_facts(path)
    if not path.exists():
        raise GGUFError(str(path), "does not exist")
    return _file_facts(path)


def _checkpoint_facts(path: Path) -> ModelFacts:
    checkpoint = open_checkpoint(path)
    architecture = ", ".join(map(str, checkpoint.config.get("architectures") or ()))
    specs = checkpoint.specs()
    ftype = ", ".join(dict.fromkeys(spec.qtype.name for spec in specs))
    return _facts(path, "checkpoint", architecture, ftype, checkpoint.hparams, specs, {})


def _file_facts(path: Path) -> ModelFacts | ImatrixFacts:
    if not _is_gguf(path):
        return imatrix_facts(path)  # the legacy form bears no mark: whoever reads it says what it is not
    file = GGUFFile(path, any_part=True)
    if file.keys.get("general.type") == "imatrix":
        return imatrix_facts(path)
    model = file if file.place is None else _model_of(file, file.place)
    name = str(model.keys.get("general.name", ""))
    keys = {key: _shortened(value) for key, value in file.keys.items()}
    facts = _facts(path, "gguf", name, ftype_name(model.keys), model.hparams, file.specs(), keys)
    part = None if file.place is None else file.place.no + 1
    return replace(facts, is_vocabulary=model.is_vocabulary, n_parts=len(model.parts), part=part)


def ftype_name(keys: Mapping[str, Any]) -> str:
    """The name of the file type that the keys of a GGUF file state."""
    try:
        ftype = FileType(keys.get("general.file_type", -1)).name
    except ValueError:
        return "unknown"
    return ftype.removeprefix("MOSTLY_").removeprefix("ALL_")


def _model_of(file: GGUFFile, place: Place) -> GGUFFile:
    """The model of which a file is a later part.

    Raises:
        GGUFError: the first part, which knows what model it is, or another one cannot be opened.
    """
    first = first_part(file.path, place)
    what = f"is {place} of a model, with {len(file.tensors)} tensors"
    if first is None:
        raise GGUFError(str(file.path), what, "look at the first part")
    try:
        return GGUFFile(first)
    except GGUFError as fault:
        raise GGUFError(str(file.path), f"{what}; {fault}") from None


def _is_gguf(path: Path) -> bool:
    regular_size(path, GGUFError)
    try:
        with path.open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError as failure:
        raise GGUFError(str(path), f"cannot be read: {failure.strerror}") from None


def _facts(
    path: Path,
    kind: Literal["checkpoint", "gguf"],
    name: str,
    ftype: str,
    hparams: Hparams,
    specs: Sequence[TensorSpec],
    keys: Mapping[str, Any],
) -> ModelFacts:
    by_type: dict[str, list[TensorSpec]] = {}
    for spec in specs:
        by_type.setdefault(spec.qtype.name, []).append(spec)
    return ModelFacts(
        path=label(path),
        kind=kind,
        name=name,
        ftype=ftype,
        hparams=hparams,
        n_elements=sum(spec.n_elements for spec in specs),
        n_bytes=sum(spec.n_bytes for spec in specs),
        types=tuple(
            TypeFacts(qtype, len(of), sum(spec.n_elements for spec in of), sum(spec.n_bytes for spec in of))
            for qtype, of in sorted(by_type.items())
        ),
        tensors=tuple(TensorFacts(spec.name, spec.shape, spec.qtype.name, spec.n_bytes) for spec in specs),
        keys=keys,
    )


def _shortened(value: Any) -> Any:
    """A value as JSON takes it, of an array the beginning: vocabularies are long."""
    array = elements(value)
    if array is not None:
        more = [f"... {len(array):,} in all"] if len(array) > MAX_SHOWN else []
        return [*map(_shortened, array[:MAX_SHOWN]), *more]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)  # JSON has no such numbers
    return value


def _kind(facts: ModelFacts) -> str:
    if facts.part is not None:
        return f"{facts.kind}, part {facts.part} of {facts.n_parts}"
    if facts.n_parts > 1:
        return f"{facts.kind} in {facts.n_parts} parts"
    return f"{facts.kind}, a vocabulary only" if facts.is_vocabulary else facts.kind


def in_words(facts: ModelFacts) -> list[tuple[str, str]]:
    """The facts that a person wants to see first: pairs of a label and a text."""
    hp = facts.hparams
    experts = f"{hp.n_expert}, {hp.n_expert_used} used" if hp.n_expert else "none (dense)"
    chosen, fed_back = choice_in_words(facts.keys), feedback_in_words(facts.keys)
    return [
        ("kind", _kind(facts)),
        ("name", facts.name),
        ("architecture", hp.arch),
        ("file type", facts.ftype),
        *([("types chosen", chosen)] if chosen else []),
        *([("codes chosen", fed_back)] if fed_back else []),
        ("layers", str(hp.n_layer)),
        ("experts", experts),
        ("embedding", str(hp.n_embd)),
        ("feed-forward", str(hp.n_ff)),
        ("heads", f"{hp.n_head}, {hp.n_head_kv} for keys and values"),
        ("context", f"{hp.n_ctx_train:,} tokens"),
        ("vocabulary", f"{hp.n_vocab:,} tokens"),
        ("weights", f"{facts.n_elements:,}"),
        ("size", f"{size_in_words(facts.n_bytes)}, {facts.bpw:.2f} bits per weight"),
    ]
