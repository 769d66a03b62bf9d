"""The metadata of a model file: key-value pairs in llama.cpp's order and types, and settings made by hand.

`model_keys` writes what conversion/base.py (set_gguf_parameters) and conversion/llama.py of llama.cpp write, in their
order; `assemble` leaves the list as llama-quantize leaves it (src/llama-quant.cpp), whatever the file type.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gguf import GGUFValueType

from calibration.importance.imatrix import Imatrix
from gguf_export.metadata.model_card import TEXTS, Card, read_card
from quantize.containers.keys import KeyValue
from quantize.containers.untrusted import quoted
from quantize.exceptions import CheckpointError, RecipeError
from quantize.hparams import Hparams, RopeScaling
from quantize.telling import Note, discard
from quantize.tensors import TensorSpec

__all__ = [
    "KeyValue",
    "ParameterCount",
    "assemble",
    "count_params",
    "model_keys",
    "parse_override",
    "size_label",
]

QUANTIZATION_VERSION = 2  # ggml's GGML_QNT_VERSION

_INTEGERS = frozenset(GGUFValueType[f"{sign}{bits}"] for sign in ("UINT", "INT") for bits in (8, 16, 32, 64))
_GATING_FUNCS = {"softmax": 1, "sigmoid": 2, "sqrtsoftplus": 4}
_SCORE_KEYS = (
    "score_function",
    "scoring_func",
    "score_func",
    "moe_router_activation",
    "moe_router_activation_func",
    "expert_selection_fn",
)
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
        if "_exps." in spec.name and len(spec.shape) == 3:
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


def model_keys(
    path: Path,
    config: Mapping[str, Any],
    hparams: Hparams,
    *,
    n_params: ParameterCount,
    name: str | None = None,
    note: Note = discard,
) -> list[KeyValue]:
    """The keys that say what the model is: general.*, then those of its architecture.

    Args:
        path: the model's folder, read for README.md and generation_config.json.
        config: config.json with the defaults of transformers filled in.
        hparams: the same in llama.cpp's words.
        n_params: weights, as `count_params` counts them.
        name: general.name given by hand; base name, size label and the like then follow from it.
        note: told, in one line each, what was left out.

    Raises:
        CheckpointError: config.json asks for a router that llama.cpp does not know.
    """
    card = read_card(path, config, n_params.total, name, note)
    card.texts.setdefault("name", path.name.encode("utf-8", "replace").decode("utf-8") or "model")
    if n_params.total > 0:
        card.texts.setdefault("size_label", size_label(n_params))
    return [
        KeyValue.text("general.architecture", hparams.arch),
        KeyValue.text("general.type", "model"),
        *_general_keys(card),
        *_arch_keys(config, hparams),
    ]


def _general_keys(card: Card) -> list[KeyValue]:
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


def _arch_keys(config: Mapping[str, Any], hparams: Hparams) -> list[KeyValue]:
    """llama.* (or what the architecture is called), in the converter's order."""
    u32, f32 = KeyValue.u32, KeyValue.f32
    arch = hparams.arch
    keys = [
        u32(f"{arch}.block_count", hparams.n_layer),
        u32(f"{arch}.context_length", hparams.n_ctx_train),
        u32(f"{arch}.embedding_length", hparams.n_embd),
        u32(f"{arch}.feed_forward_length", hparams.n_ff),
        u32(f"{arch}.attention.head_count", hparams.n_head),
        u32(f"{arch}.attention.head_count_kv", hparams.n_head_kv),
        *_rope_scaling_keys(arch, hparams.rope_scaling),
        f32(f"{arch}.rope.freq_base", hparams.rope_freq_base),
        f32(f"{arch}.attention.layer_norm_rms_epsilon", hparams.rms_norm_eps),
    ]
    if hparams.n_expert:
        keys.append(u32(f"{arch}.expert_count", hparams.n_expert))
        keys.append(u32(f"{arch}.expert_used_count", hparams.n_expert_used))
    for key, said in (("expert_group_count", "n_group"), ("expert_group_used_count", "topk_group")):
        n_groups = config.get(said)
        if type(n_groups) is not int:
            continue
        if not 0 <= n_groups < 2**31:
            raise CheckpointError(f"config.json: {said} {quoted(n_groups)} is no number of groups")
        keys.append(u32(f"{arch}.{key}", n_groups))
    score = next((config[key] for key in _SCORE_KEYS if config.get(key) is not None), None)
    if score is not None:
        if not isinstance(score, str) or score not in _GATING_FUNCS:
            known = ", ".join(_GATING_FUNCS)
            raise CheckpointError(
                f"config.json: router function {quoted(score)} is not supported; supported: {known}"
            )
        keys.append(u32(f"{arch}.expert_gating_func", _GATING_FUNCS[score]))
    if hparams.head_dim_explicit:
        keys.append(u32(f"{arch}.attention.key_length", hparams.head_dim))
        keys.append(u32(f"{arch}.attention.value_length", hparams.head_dim))
    keys.append(u32(f"{arch}.vocab_size", hparams.n_vocab))
    keys.append(u32(f"{arch}.rope.dimension_count", hparams.head_dim))
    return keys


def _rope_scaling_keys(arch: str, scaling: RopeScaling) -> list[KeyValue]:
    """Nothing for llama3, whose factors are a tensor, `rope_freqs.weight`."""
    prefix = f"{arch}.rope.scaling"
    if scaling.kind not in ("linear", "yarn", "longrope"):
        return []
    keys = [KeyValue.text(f"{prefix}.type", scaling.kind)]
    if scaling.kind != "longrope":
        keys.append(KeyValue.f32(f"{prefix}.factor", scaling.factor))
    if scaling.kind == "yarn":
        keys.append(KeyValue.u32(f"{prefix}.original_context_length", scaling.n_ctx_orig))
        keys += [
            KeyValue.f32(f"{prefix}.yarn_{part}", value)
            for part in ("ext_factor", "attn_factor", "beta_fast", "beta_slow")
            if (value := getattr(scaling, part)) is not None
        ]
    return keys


def parse_override(text: str) -> KeyValue:
    """A setting as llama-quantize spells it: KEY=int:N, KEY=float:X, KEY=bool:true|false or KEY=str:TEXT.

    Integers are written as u32 and floats as f32, which is all that llama-quantize writes (string_parse_kv_override of
    common/common.cpp, src/llama-quant.cpp). What it would silently make something else of is refused: text that is no
    number (to it 0), negative integers (their absolute value), integers beyond 32 bits (the lower ones).

    Raises:
        RecipeError: the setting is malformed, or its key may not be set by hand.
    """
    key, equals, rest = text.partition("=")
    kind, colon, value = rest.partition(":")
    where = f"override {text[:200]!r}"
    if not equals or not colon or kind not in ("int", "float", "bool", "str"):
        raise RecipeError(
            f"{where}: spell it KEY=int:N, KEY=float:X, KEY=bool:true, KEY=bool:false or KEY=str:TEXT"
        )
    if not re.fullmatch(r"[!-~]{1,127}", key):
        raise RecipeError(f"{where}: a key has 1 to 127 visible ASCII characters")
    if key.startswith("split.") or key == "general.alignment":
        raise RecipeError(f"{where}: {key} follows from the layout of the file and cannot be set")
    if kind == "str":
        if not _is_utf8(value) or len(value.encode("utf-8")) > 127 or "\0" in value:
            raise RecipeError(f"{where}: a text has at most 127 bytes of UTF-8")
        return KeyValue.text(key, value)
    if kind == "bool":
        if value not in ("true", "false"):
            raise RecipeError(f"{where}: a bool is true or false")
        return KeyValue.flag(key, value == "true")
    if kind == "int":
        if not re.fullmatch(r"\+?[0-9]{1,10}", value) or int(value) >= 2**32:
            raise RecipeError(f"{where}: an int is written as u32, so it must be from 0 to 4294967295")
        return KeyValue.u32(key, int(value))
    if (
        not re.fullmatch(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]+)?", value, re.I)
        or abs(float(value)) > 3.4e38
    ):
        raise RecipeError(f"{where}: a float is a decimal number that fits 32 bits")
    return KeyValue.f32(key, float(value))


def _told(key: str, value: str | int | float) -> KeyValue:
    if isinstance(value, str):
        return KeyValue.text(key, value)
    return KeyValue.f32(key, value) if isinstance(value, float) else KeyValue.u32(key, value)


def _is_utf8(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def assemble(
    keys: Iterable[KeyValue],
    ftype_id: int,
    imatrix: Imatrix | None = None,
    overrides: Sequence[KeyValue] = (),
) -> list[KeyValue]:
    """All keys of one file, in the order in which llama-quantize leaves them.

    The given keys without split.*, then general.quantization_version, general.file_type, the overrides, and what is
    told of the imatrix. Whatever is set again moves to its new place.

    Raises:
        RecipeError: an override has another type than the key, which no loader would accept.
    """
    ordered = {kv.key: kv for kv in keys if not kv.key.startswith("split.")}
    told = [_told(key, value) for key, value in (imatrix.metadata() if imatrix else {}).items()]
    version = KeyValue.u32("general.quantization_version", QUANTIZATION_VERSION)
    file_type = KeyValue.u32("general.file_type", ftype_id)
    for kv in (version, file_type, *overrides, *told):
        there = ordered.pop(kv.key, kv)
        if there.type != kv.type and not {there.type, kv.type} <= _INTEGERS:
            raise RecipeError(
                f"override {kv.key}: the model has a {there.type.name} there, not a {kv.type.name}, and would not load"
            )
        ordered[kv.key] = kv
    return list(ordered.values())
