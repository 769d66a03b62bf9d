"""The `{arch}.*` keys that are known here, as rows that families put together in their converter's order.

Also keys that no family here writes: files of other architectures are read and verified by them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from gguf import GGUFValueType

from quantize.containers.untrusted import quoted
from quantize.exceptions import CheckpointError
from quantize.families.keys import MAX_SIZE, Config, Key, Value, whole_number
from quantize.families.rope import rope_scaling

__all__ = [
    "BASE",
    "EXPERTS",
    "HEADS",
    "KNOWN",
    "MAX_EXPERTS",
    "MAX_LAYERS",
    "ROUTER",
    "SIZES",
    "known",
    "n_layer_with",
    "unless_none",
    "with_rows",
]

U32, F32 = GGUFValueType.UINT32, GGUFValueType.FLOAT32
STRING, BOOL = GGUFValueType.STRING, GGUFValueType.BOOL

MAX_LAYERS, MAX_EXPERTS = 512, 1024  # LLAMA_MAX_LAYERS, LLAMA_MAX_EXPERTS
GATING_FUNCS = {"softmax": 1, "sigmoid": 2, "sqrtsoftplus": 4}  # llama_expert_gating_func_type
SCORE_SETTINGS = (
    "score_function",
    "scoring_func",
    "score_func",
    "moe_router_activation",
    "moe_router_activation_func",
    "expert_selection_fn",
)


def _scaling(name: str, kinds: tuple[str, ...], config: Config) -> Value | None:
    """A field of the rope scaling, where its kind is one of `kinds`; llama3's factors are a tensor, and no key."""
    scaling, _ = rope_scaling(config["rope_parameters"])
    value: Value | None = getattr(scaling, name)
    return value if scaling.kind in kinds else None


def _scaling_key(name: str, field: str, kind: GGUFValueType, scalings: tuple[str, ...]) -> Key:
    value = partial(_scaling, field, scalings)
    return Key(f"rope.scaling.{name}", f"rope_scaling.{field}", kind, value, optional=True)


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
"""Keys that every model has (conversion/base.py: set_gguf_parameters)."""

EXPERTS = (
    Key("expert_count", "n_expert", config="num_local_experts", default=0, maximum=MAX_EXPERTS),
    Key("expert_used_count", "n_expert_used", config="num_experts_per_tok", default=0, per_layer=True),
)
"""Keys of a model with experts (ibid.)."""

ROUTER = (
    Key(
        "expert_group_count", "n_expert_groups", config=partial(_groups, "n_group"), optional=True, minimum=0
    ),
    Key(
        "expert_group_used_count",
        "n_group_used",
        config=partial(_groups, "topk_group"),
        optional=True,
        minimum=0,
    ),
    Key("expert_gating_func", "expert_gating_func", config=_gating, optional=True),
)
"""How experts are chosen, where config.json says it (ibid.)."""

HEADS = (
    Key("attention.key_length", "head_dim", config="head_dim", optional=True),
    Key("attention.value_length", "head_dim_v", config="head_dim", optional=True),
)
"""Dimensions of heads, where config.json says them (ibid.)."""

SIZES = (
    Key("vocab_size", made="n_vocab"),
    Key("rope.dimension_count", "n_rot", made="head_dim", optional=True),
)
"""Keys that `LlamaModel` adds (conversion/llama.py: set_gguf_parameters)."""

FURTHER = (
    Key("expert_feed_forward_length", "n_ff_exp", default="n_ff", per_layer=True),
    Key("expert_shared_feed_forward_length", "n_ff_shexp", optional=True, minimum=0),
    Key("expert_shared_count", "n_expert_shared", optional=True, minimum=0),
    Key("expert_weights_scale", "expert_weights_scale", F32, optional=True),
    Key("expert_weights_norm", "expert_weights_norm", BOOL, optional=True),
    Key("leading_dense_block_count", "n_layer_dense_lead", optional=True, minimum=0),
    Key("nextn_predict_layers", "n_layer_nextn", optional=True, minimum=0),
    Key("attention.layer_norm_epsilon", "layer_norm_eps", F32, optional=True),
    Key("attention.sliding_window", "n_swa", optional=True, minimum=0),
    Key("attention.scale", "attention_scale", F32, optional=True),
    Key("attention.clamp_kqv", "clamp_kqv", F32, optional=True),
    Key("embedding_scale", "embedding_scale", F32, optional=True),
    Key("residual_scale", "residual_scale", F32, optional=True),
    Key("logit_scale", "logit_scale", F32, optional=True),
    Key("rope.scale_linear", type=F32),
    Key("rope.scaling.attn_factor", "rope_attn_factor", F32, optional=True),
    Key("rope.scaling.finetuned", type=BOOL),
)
"""Keys of other architectures (src/llama-model.cpp: load_hparams)."""

KNOWN: Mapping[str, Key] = {row.name: row for row in (*BASE, *EXPERTS, *ROUTER, *HEADS, *SIZES, *FURTHER)}
"""All keys that are known here, by name."""


def known(
    name: str,
    *,
    config: str | Callable[[Config], Value | None],
    optional: bool = False,
    default: int | float | str | Callable[[Mapping[str, Any]], Value] | None = None,
) -> Key:
    """A row of `KNOWN` for a family whose config.json has a setting of its own for it, or a default of its own."""
    row = KNOWN[name]
    default = row.default if default is None else default
    return replace(row, config=config, made="", optional=optional, default=default)


def n_layer_with(further: str) -> Callable[[Config], Value | None]:
    """The number of layers, those for further tokens among them; `further` is the setting that counts these."""
    return partial(_n_layer_with, further)


def _n_layer_with(further: str, config: Config) -> int:
    return whole_number(config, "num_hidden_layers", 1, MAX_LAYERS) + (_n_further(further, config) or 0)


def unless_none(further: str) -> Callable[[Config], Value | None]:
    """The number of layers for further tokens, which is written only where there are any."""
    return partial(_n_further, further)


def _n_further(setting: str, config: Config) -> int | None:
    if config.get(setting) is None:
        return None
    return whole_number(config, setting, 0, MAX_LAYERS) or None


def with_rows(keys: Iterable[Key], *rows: Key) -> tuple[Key, ...]:
    """A table in which some rows take the place of those of the same name."""
    by_name = {row.name: row for row in rows}
    return tuple(by_name.get(row.name, row) for row in keys)
