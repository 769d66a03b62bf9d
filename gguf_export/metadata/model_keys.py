"""The metadata of a model file: key-value pairs in llama.cpp's order and types, and settings made by hand.

`model_keys` writes what conversion/base.py (set_gguf_parameters) and conversion/llama.py of llama.cpp write, in their
order (the keys of an architecture come from its source); `assemble` leaves the list as llama-quantize leaves it
(src/llama-quant.cpp), whatever the file type.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from gguf import GGUFValueType

from calibration.importance.imatrix import Imatrix
from gguf_export.metadata.model_card import TEXTS, Card, read_card
from quantize.containers.keys import KeyValue
from quantize.containers.untrusted import exact_text, label
from quantize.exceptions import RecipeError
from quantize.recipes.layout import ALIGNMENT
from quantize.sources.checkpoint import Checkpoint
from quantize.telling import Note, discard
from quantize.tensors import TensorSpec

__all__ = [
    "ParameterCount",
    "assemble",
    "count_params",
    "exact_name",
    "model_keys",
    "parse_override",
    "size_label",
]

SPLIT_KEYS = ("split.no", "split.count", "split.tensors.count")
QUANTIZATION_VERSION = 2  # ggml's GGML_QNT_VERSION

_INTEGERS = frozenset(GGUFValueType[f"{sign}{bits}"] for sign in ("UINT", "INT") for bits in (8, 16, 32, 64))
_ORIGIN_ORDER = ("name", "author", "version", "organization", "description", "url", "doi", "uuid", "repo_url")


@dataclass(frozen=True)
class ParameterCount:
    """Weights of a model as the size label counts them; `expert` is one expert of all layers together."""

    total: int
    shared: int
    expert: int = 0
    n_expert: int = 0


def count_params(specs: Iterable[TensorSpec]) -> ParameterCount:
    """Count as gguf-py does (GGUFWriter.get_total_parameter_count): stacked `_exps.` tensors go by the expert."""
    total = shared = expert = n_expert = n_stacked = 0
    for spec in specs:
        total += spec.n_elements
        if spec.has_experts:
            expert += spec.n_elements // spec.n_matrix
            n_expert += spec.n_matrix
            n_stacked += 1
        else:
            shared += spec.n_elements
    return ParameterCount(total, shared, expert, n_expert // n_stacked if n_stacked else 0)


def size_label(count: ParameterCount) -> str:
    """`7.2B`, or with experts `4x6.8M`: their number times the weights of one of them and of the shared part.

    At least two digits, as gguf-py/gguf/utility.py writes it.
    """
    weights = count.shared + count.expert if count.n_expert else count.total
    scaled, suffix = next(
        (weights * unit, suffix)
        for unit, suffix in ((1e-12, "T"), (1e-9, "B"), (1e-6, "M"), (1e-3, "K"))
        if weights * unit > 1 or suffix == "K"
    )
    decimals = max(2 - len(str(round(scaled)).lstrip("0")), 0)
    label = f"{scaled:.{decimals}f}{suffix}"
    return f"{count.n_expert}x{label}" if count.n_expert else label


def model_keys(checkpoint: Checkpoint, *, name: str | None = None, note: Note = discard) -> list[KeyValue]:
    """The keys that say what the model is: general.*, then those of its architecture.

    Args:
        checkpoint: the model; of its folder README.md and generation_config.json are read.
        name: general.name given by hand; base name, size label and the like then follow from it.
        note: receives remarks on what was left out.

    Raises:
        RecipeError: `name` is not spelled in UTF-8.
    """
    n_params = count_params(checkpoint.specs())
    name = None if name is None else exact_name(name)
    card = read_card(checkpoint.path, checkpoint.config, n_params.total, name, note)
    card.texts.setdefault("name", label(checkpoint.path.name) or "model")
    if n_params.total > 0:
        card.texts.setdefault("size_label", size_label(n_params))
    arch, own = checkpoint.arch, checkpoint.arch_keys()
    leading = {f"{arch}.{row.name}" for row in checkpoint.family.keys if row.leads}
    return [
        KeyValue.text("general.architecture", arch),
        *(kv for kv in own if kv.key in leading),
        KeyValue.text("general.type", "model"),
        *_general_keys(card),
        *(kv for kv in own if kv.key not in leading),
    ]


def exact_name(name: str) -> str:
    """A model's name that is given by hand, as a GGUF file can hold it.

    Raises:
        RecipeError: it is not spelled in UTF-8.
    """
    try:
        return exact_text(name)
    except UnicodeError:
        raise RecipeError(
            f"name {label(name)}",
            "is not UTF-8, as texts of a GGUF file are",
            "spell {setting} in UTF-8",
            setting="name",
        ) from None


def _general_keys(card: Card) -> list[KeyValue]:
    """general.* in the converter's order (gguf-py/gguf/metadata.py: set_gguf_meta_model)."""
    of_type = {str: GGUFValueType.STRING, int: GGUFValueType.INT32, float: GGUFValueType.FLOAT32}
    keys = [
        KeyValue(f"general.sampling.{key}", value, of_type[type(value)])
        for key, value in card.sampling.items()
    ]
    keys += [KeyValue.text(f"general.{key}", card.texts[key]) for key in TEXTS if key in card.texts]
    for prefix, origins in (("base_model", card.base_models), ("dataset", card.datasets)):
        if origins is None:
            continue
        keys.append(KeyValue.u32(f"general.{prefix}.count", len(origins)))
        for i, origin in enumerate(origins):
            keys += [
                KeyValue.text(f"general.{prefix}.{i}.{key}", origin[key])
                for key in _ORIGIN_ORDER
                if key in origin
            ]
    for key, words in (("general.tags", card.tags), ("general.languages", card.languages)):
        if words:
            keys.append(KeyValue.array(key, words, GGUFValueType.STRING))
    return keys


def parse_override(text: str) -> KeyValue:
    """A setting as llama-quantize spells it: KEY=int:N, KEY=float:X, KEY=bool:true|false or KEY=str:TEXT.

    Integers are written as u32 and floats as f32, which is all that llama-quantize writes (string_parse_kv_override of
    common/common.cpp, src/llama-quant.cpp). Values that it would silently change are refused: text that is no
    number (to it 0), negative integers (their absolute value), integers beyond 32 bits (the lower ones). A text may be
    longer than the 127 bytes that it takes: a chat template is.

    Raises:
        RecipeError: the setting is malformed, or its key may not be set by hand.
    """
    key, equals, rest = text.partition("=")
    kind, colon, value = rest.partition(":")
    place = f"override {text[:200]!r}"
    if not equals or not colon or kind not in ("int", "float", "bool", "str"):
        forms = "KEY=int:N, KEY=float:X, KEY=bool:true, KEY=bool:false or KEY=str:TEXT"
        raise RecipeError(place, "is no setting of a key", f"spell it {forms}")
    if not re.fullmatch(r"[!-~]{1,127}", key):
        raise RecipeError(place, "a key has 1 to 127 visible ASCII characters")
    if key.startswith("split.") or key == "general.alignment":
        raise RecipeError(place, f"{key} follows from the layout of the file and cannot be set")
    if kind == "str":
        if not _fits(value):
            raise RecipeError(place, "a text is UTF-8 without NUL")
        return KeyValue.text(key, exact_text(value))
    if kind == "bool":
        if value not in ("true", "false"):
            raise RecipeError(place, "a bool is true or false")
        return KeyValue.flag(key, value == "true")
    if kind == "int":
        if not re.fullmatch(r"\+?[0-9]{1,10}", value) or int(value) >= 2**32:
            raise RecipeError(place, "an int is written as u32, so it must be from 0 to 4294967295")
        return KeyValue.u32(key, int(value))
    if (
        not re.fullmatch(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]+)?", value, re.I)
        or abs(float(value)) > 3.4e38
    ):
        raise RecipeError(place, "a float is a decimal number that fits 32 bits")
    return KeyValue.f32(key, float(value))


def _pair(key: str, value: str | int | float) -> KeyValue:
    if isinstance(value, str):
        return KeyValue.text(key, value)
    return KeyValue.f32(key, value) if isinstance(value, float) else KeyValue.u32(key, value)


def _fits(text: str) -> bool:
    """Whether llama.cpp reads a text as it is written."""
    try:
        return "\0" not in exact_text(text)
    except UnicodeError:
        return False


def _is_other_layout(kv: KeyValue) -> bool:
    """Whether a GGUF file says by this key that its tensors lie otherwise than those that are written here."""
    return kv.key == "general.alignment" and kv.value != ALIGNMENT


def assemble(
    keys: Iterable[KeyValue],
    ftype_id: int,
    imatrix: Imatrix | None = None,
    overrides: Sequence[KeyValue] = (),
    n_layer: Sequence[KeyValue] = (),
    stated: Sequence[KeyValue] = (),
) -> list[KeyValue]:
    """All keys of one file, in the order in which llama-quantize leaves them.

    The given keys without those of a part of a split file and an alignment that is not ours, then
    general.quantization_version, general.file_type, the overrides, the keys that describe the imatrix, the number
    of layers where some were left out, and what the recipe `stated`. A key that is set again moves to its new place.

    Raises:
        RecipeError: an override has another type than the key, which no loader would accept.
    """
    ordered = {kv.key: kv for kv in keys if kv.key not in SPLIT_KEYS and not _is_other_layout(kv)}
    of_imatrix = [_pair(key, value) for key, value in (imatrix.metadata() if imatrix else {}).items()]
    version = KeyValue.u32("general.quantization_version", QUANTIZATION_VERSION)
    file_type = KeyValue.u32("general.file_type", ftype_id)
    for kv in (version, file_type, *overrides, *of_imatrix, *n_layer, *stated):
        replaced = ordered.pop(kv.key, kv)
        if replaced.type != kv.type and not {replaced.type, kv.type} <= _INTEGERS:
            message = f"the model has a {replaced.type.name} there, not a {kv.type.name}, and would not load"
            raise RecipeError(f"override {kv.key}", message)
        ordered[kv.key] = kv
    return list(ordered.values())
