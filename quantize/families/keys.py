"""The `{arch}.*` keys of a GGUF file: name, type, where config.json says the value, and what it is in `Hparams`.

One table serves whoever writes a file (config.json -> keys), reads one (keys -> `Hparams`), verifies it, or examines a
config.json. A family lists its keys in the order of llama.cpp's converter; to add a key is to add a row:

    Key("attention.q_lora_rank", "q_lora_rank", config="q_lora_rank")
    known("expert_count", config="n_routed_experts")    # a row of `KNOWN`, as this family's config.json spells it

`KNOWN` also has keys that no family here writes: files of other architectures are read and verified by it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

from gguf import GGUFValueType

from quantize.containers.keys import KeyValue
from quantize.containers.untrusted import F32_MAX, quoted
from quantize.exceptions import CheckpointError
from quantize.families.expressions import evaluate
from quantize.families.rope import rope_scaling
from quantize.hparams import Hparams, RopeScaling

__all__ = [
    "BASE",
    "EXPERTS",
    "HEADS",
    "KNOWN",
    "MAX_EXPERTS",
    "MAX_LAYERS",
    "ROUTER",
    "SIZES",
    "Config",
    "Key",
    "Value",
    "config_values",
    "derived",
    "hparams_of",
    "key_values",
    "known",
    "whole_number",
]

Config = Mapping[str, Any]
Value = int | float | str | bool

U32, F32 = GGUFValueType.UINT32, GGUFValueType.FLOAT32
STRING, BOOL = GGUFValueType.STRING, GGUFValueType.BOOL

MAX_LAYERS, MAX_EXPERTS = 512, 1024  # LLAMA_MAX_LAYERS, LLAMA_MAX_EXPERTS
MAX_SIZE = 2**31 - 1
GATING_FUNCS = {"softmax": 1, "sigmoid": 2, "sqrtsoftplus": 4}  # llama_expert_gating_func_type
SCORE_SETTINGS = (
    "score_function",
    "scoring_func",
    "score_func",
    "moe_router_activation",
    "moe_router_activation_func",
    "expert_selection_fn",
)


@dataclass(frozen=True)
class Key:
    """One key of an architecture.

    `config` is the setting of config.json, with a dot where it lies within another ("rope_parameters.rope_theta"), or
    a function of the whole config that gives None where nothing is to be written. `made` is an expression in the
    model's dimensions, for a key that only repeats them.

    A file that lacks the key means `default`: a value, or an expression in dimensions that stand before it in the
    table. Without one the key is required, unless it is `optional`: then `Hparams` itself knows what is meant.
    """

    name: str  # behind "{arch}."
    field: str = ""  # of `Hparams`, or a further dimension (`Hparams.extra`); empty where it is written only
    type: GGUFValueType = U32
    config: str | Callable[[Config], Value | None] = ""
    made: str = ""
    default: int | float | str | None = None
    optional: bool = False  # config.json may leave it out
    per_layer: bool = False  # llama.cpp takes an array of one number for each layer, too
    minimum: int = 1
    maximum: int = MAX_SIZE

    @property
    def is_required(self) -> bool:
        """Whether no model can do without: a file that lacks it cannot be read."""
        return bool(self.field) and self.default is None and not self.optional


def _scaling(name: str, kinds: tuple[str, ...], config: Config) -> Value | None:
    """A field of the rope scaling, where its kind is one of `kinds`; llama3's factors are a tensor, and no key."""
    scaling, _ = rope_scaling(config["rope_parameters"])
    value: Value | None = getattr(scaling, name)
    return value if scaling.kind in kinds else None


def _scaling_key(name: str, field: str, kind: GGUFValueType, scalings: tuple[str, ...]) -> Key:
    value = partial(_scaling, field, scalings)
    return Key(f"rope.scaling.{name}", f"rope_scaling.{field}", kind, value, optional=True)


def derived(expression: str) -> Callable[[Config], Value | None]:
    """A value that config.json says only in pieces: "qk_nope_head_dim+qk_rope_head_dim"."""
    return partial(_derived, expression)


def _derived(expression: str, config: Config) -> Value | None:
    try:
        return evaluate(expression, config)
    except (KeyError, TypeError, ValueError, ArithmeticError):
        raise CheckpointError("config.json", f"{expression} cannot be computed") from None


def _groups(setting: str, config: Config) -> int | None:
    """A number of groups of experts; some configs say something else under that name, which is left out."""
    n_groups = config.get(setting)
    if type(n_groups) is not int:
        return None
    if not 0 <= n_groups <= MAX_SIZE:
        raise CheckpointError("config.json", f"{setting} {quoted(n_groups)} is no number of groups")
    return n_groups


def _gating(config: Config) -> int | None:
    """The function that makes probabilities of the router's logits."""
    score = next((config[name] for name in SCORE_SETTINGS if config.get(name) is not None), None)
    if score is None:
        return None
    if not isinstance(score, str) or score not in GATING_FUNCS:
        supported = f"supported: {', '.join(GATING_FUNCS)}"
        raise CheckpointError("config.json", f"router function {quoted(score)} is not supported", supported)
    return GATING_FUNCS[score]


BASE = (
    Key("block_count", "n_layer", config="num_hidden_layers", maximum=MAX_LAYERS),
    Key("context_length", "n_ctx_train", config="max_position_embeddings"),
    Key("embedding_length", "n_embd", config="hidden_size"),
    Key("feed_forward_length", "n_ff", config="intermediate_size", per_layer=True),
    Key("attention.head_count", "n_head", config="num_attention_heads", per_layer=True),
    Key(
        "attention.head_count_kv",
        "n_head_kv",
        config="num_key_value_heads",
        default="n_head",
        per_layer=True,
    ),
    _scaling_key("type", "kind", STRING, ("linear", "yarn", "longrope")),
    _scaling_key("factor", "factor", F32, ("linear", "yarn")),
    _scaling_key("original_context_length", "n_ctx_orig", U32, ("yarn",)),
    _scaling_key("yarn_ext_factor", "ext_factor", F32, ("yarn",)),
    _scaling_key("yarn_attn_factor", "attn_factor", F32, ("yarn",)),
    _scaling_key("yarn_beta_fast", "beta_fast", F32, ("yarn",)),
    _scaling_key("yarn_beta_slow", "beta_slow", F32, ("yarn",)),
    Key("rope.freq_base", "rope_freq_base", F32, "rope_parameters.rope_theta", default=10000.0),
    Key("attention.layer_norm_rms_epsilon", "rms_norm_eps", F32, "rms_norm_eps"),
)
"""What every model has (conversion/base.py: set_gguf_parameters)."""

EXPERTS = (
    Key("expert_count", "n_expert", config="num_local_experts", default=0, maximum=MAX_EXPERTS),
    Key("expert_used_count", "n_expert_used", config="num_experts_per_tok", default=0, per_layer=True),
)
"""What a model with experts has (ibid.)."""

ROUTER = (
    Key("expert_group_count", config=partial(_groups, "n_group"), optional=True, minimum=0),
    Key("expert_group_used_count", config=partial(_groups, "topk_group"), optional=True, minimum=0),
    Key("expert_gating_func", config=_gating, optional=True),
)
"""How experts are chosen, where config.json says it (ibid.)."""

HEADS = (
    Key("attention.key_length", "head_dim", config="head_dim", optional=True),
    Key("attention.value_length", "head_dim_v", config="head_dim", optional=True),
)
"""Dimensions of heads, where config.json says them (ibid.)."""

SIZES = (
    Key("vocab_size", made="n_vocab"),
    Key("rope.dimension_count", made="head_dim"),
)
"""What `LlamaModel` adds (conversion/llama.py: set_gguf_parameters)."""

FURTHER = (
    Key("expert_feed_forward_length", "n_ff_exp", default="n_ff", per_layer=True),
    Key("expert_shared_count", "n_expert_shared", optional=True, minimum=0),
    Key("expert_weights_scale", type=F32),
    Key("expert_weights_norm", type=BOOL),
    Key("attention.layer_norm_epsilon", type=F32),
    Key("rope.scale_linear", type=F32),
    Key("rope.scaling.attn_factor", type=F32),
    Key("rope.scaling.finetuned", type=BOOL),
)
"""What other architectures have (src/llama-model.cpp: load_hparams)."""

KNOWN: Mapping[str, Key] = {row.name: row for row in (*BASE, *EXPERTS, *ROUTER, *HEADS, *SIZES, *FURTHER)}
"""All keys that are known here, by name."""

HPARAMS_FIELDS = frozenset(field.name for field in fields(Hparams))


def known(name: str, *, config: str | Callable[[Config], Value | None], optional: bool = False) -> Key:
    """A row of `KNOWN` for a family whose config.json has a setting of its own for it."""
    return replace(KNOWN[name], config=config, optional=optional)


def config_values(keys: Iterable[Key], config: Config) -> dict[str, Value]:
    """The values of a complete config.json by the names of the keys, in the order of the table.

    Raises:
        CheckpointError: a value is missing, of another type, or out of range.
    """
    values = {row.name: _config_value(row, config) for row in keys if row.config}
    return {name: value for name, value in values.items() if value is not None}


def _config_value(row: Key, config: Config) -> Value | None:
    if callable(row.config):
        value = row.config(config)
        if type(value) is int and not row.minimum <= value <= row.maximum:
            message = f"{row.name} would be {value}, outside of {row.minimum}..{row.maximum}"
            raise CheckpointError("config.json", message)
        return value
    *outer, name = row.config.split(".")
    for part in outer:
        config = config[part]
    value = config.get(name)
    if value is None and row.optional:
        return None
    if row.type == U32:
        return whole_number(config, name, row.minimum, row.maximum)
    if row.type == F32:
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value <= F32_MAX:
            raise CheckpointError("config.json", f"{name} must be a number above 0, but is {quoted(value)}")
        return float(value)
    expected, words = (bool, "true or false") if row.type == BOOL else (str, "a text")
    if not isinstance(value, expected):
        raise CheckpointError("config.json", f"{name} must be {words}, but is {quoted(value)}")
    return value


def whole_number(config: Config, name: str, minimum: int, maximum: int = MAX_SIZE) -> int:
    """A setting of config.json that must be a whole number from `minimum` to `maximum`.

    Raises:
        CheckpointError: it is none.
    """
    value = config.get(name)
    if type(value) is not int:
        given = quoted(value) if name in config else "missing"
        raise CheckpointError("config.json", f"{name} must be a whole number, but is {given}")
    if not minimum <= value <= maximum:
        raise CheckpointError("config.json", f"{name} {quoted(value)} is outside of {minimum}..{maximum}")
    return value


def hparams_of(
    arch: str, keys: Iterable[Key], values: Mapping[str, Value], n_vocab: int, *, rope_neox: bool = False
) -> Hparams:
    """The hyper-parameters that the values of some keys mean.

    Args:
        arch: general.architecture.
        keys: the table; a key that is required must have a value.
        values: by the name of the key, from a file or from config.json.
        n_vocab: rows of the token embedding, which no key says for certain.
        rope_neox: see `Hparams`.

    Raises:
        KeyError: a key that is required has no value.
        ZeroDivisionError: n_head is 0.
    """
    found: dict[str, Any] = {"arch": arch, "n_vocab": n_vocab, "rope_neox": rope_neox}
    scaling: dict[str, Any] = {}
    for row in keys:
        value = values.get(row.name)
        if value is None and row.is_required:
            raise KeyError(row.name)
        if value is None:
            value = evaluate(row.default, found) if isinstance(row.default, str) else row.default
        outer, _, field = row.field.rpartition(".")
        if field and value is not None:
            (scaling if outer else found)[field] = value
    found.setdefault("head_dim", found["n_embd"] // found["n_head"])
    extra = {name: found.pop(name) for name in [*found] if name not in HPARAMS_FIELDS}
    return Hparams(**found, rope_scaling=RopeScaling(**scaling), extra=extra)


def key_values(keys: Iterable[Key], values: Mapping[str, Value], hparams: Hparams) -> list[KeyValue]:
    """The keys of a file in the order of the table: those that have a value, and those that repeat a dimension."""
    said = dict(values)
    said |= {row.name: evaluate(row.made, hparams.dims) for row in keys if row.made}
    return [
        KeyValue(f"{hparams.arch}.{row.name}", said[row.name], row.type) for row in keys if row.name in said
    ]
