"""config.json -> a complete config as transformers would have it -> `{arch}.*` keys -> hyper-parameters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from quantize.containers.keys import KeyValue
from quantize.containers.untrusted import quoted
from quantize.exceptions import CheckpointError
from quantize.families.expressions import evaluate
from quantize.families.keys import (
    Value,
    config_values,
    hparams_of,
    key_values,
    number,
    setting,
    whole_number,
)
from quantize.families.language import Family
from quantize.families.limits import refuse_fatal, remarks_on_limits
from quantize.families.rope import normalise_rope, rope_scaling
from quantize.hparams import Hparams
from quantize.telling import Remark

__all__ = ["ConfigFacts", "complete_config", "read_config", "shape_dims", "text_config"]

TEXT_PARTS = ("text_config", "llm_config", "lm_config", "language_config")
"""Settings that hold the config of the text model, in models that see or hear; the last one counts."""


def text_config(raw: Mapping[str, Any]) -> dict[str, Any]:
    """config.json with the settings of its text model in the place of those of the whole, where it has parts.

    conversion/base.py: ModelBase.load_hparams, TextModel.__init__, get_model_architecture.
    """
    part: Mapping[str, Any] = next(
        (raw[name] for name in reversed(TEXT_PARTS) if isinstance(raw.get(name), dict)), {}
    )
    named = {name: value for name, value in part.items() if name != "architectures" or value is not None}
    return {**raw, **named}


def complete_config(family: Family, raw: Mapping[str, Any]) -> dict[str, Any]:
    """config.json with the class defaults of transformers for missing keys, and `rope_parameters` normalised.

    Raises:
        CheckpointError: the model is quantized already, or has a setting that the family does not support, or with
            which llama.cpp cannot run it.
    """
    if raw.get("quantization_config") and not _is_read(family, raw["quantization_config"]):
        remedy = "give the BF16, F16 or F32 original instead"
        raise CheckpointError("config.json", "has a quantization_config", remedy)
    config = dict(raw)
    for alias, key in family.aliases.items():
        if key not in raw and setting(raw, alias) is not None:
            config[key] = setting(raw, alias)
    for key, value in family.defaults.items():
        config.setdefault(key, value)
    for key, expression in family.if_null.items():
        if config.get(key) is None:
            config[key] = _derived(config, key, expression)
    for key, accepted in family.accepted.items():
        if setting(config, key) not in accepted:
            raise CheckpointError(
                "config.json",
                f"{key} {quoted(setting(config, key))} is not supported for {family.architectures[0]}",
                f"supported: {', '.join(str(value) for value in accepted)}",
            )
    refuse_fatal(family.limits, family.arch, config)
    if config.get("use_sliding_window") is False:
        config["sliding_window"] = None  # transformers' Qwen configs name a window nevertheless
    config["rope_parameters"] = normalise_rope(config, family.rope_theta, family.rope_default)
    return config


@dataclass(frozen=True)
class ConfigFacts:
    """The content of a complete config.json: the keys of a GGUF file, their meaning, and remarks on the rest."""

    keys: tuple[KeyValue, ...]
    hparams: Hparams
    remarks: tuple[Remark, ...]


def read_config(family: Family, config: Mapping[str, Any], n_vocab: int) -> ConfigFacts:
    """Read a complete config by the family's table of keys; `n_vocab` counts the rows of the token embedding.

    Raises:
        CheckpointError: a value is missing, out of range, or does not go with another.
    """
    values = config_values(family.keys, config)
    _refuse_contradictions({row.field: values[row.name] for row in family.keys if row.name in values})
    scaling, remarks = rope_scaling(config["rope_parameters"])
    hparams = hparams_of(family.arch, family.keys, values, n_vocab, rope_neox=family.rope_neox)
    # Of llama3 and longrope the config says more than the keys do: the rest is in tensors.
    hparams = replace(hparams, rope_scaling=scaling)
    if hparams.n_rot % 2:
        which = "head_dim" if hparams.n_rot == hparams.head_dim else "the rotated part of a head"
        raise CheckpointError("config.json", f"{which} {hparams.n_rot} is odd: rotary positions need pairs")
    _refuse_other_rotation(config["rope_parameters"], hparams)
    window = config.get("sliding_window")
    if type(window) is int and window < hparams.n_ctx_train and not family.graph.window_every:
        message = f"the sliding window of {window} tokens is left out, as llama.cpp leaves it out"
        remarks.append(Remark("config.json", message))
    remarks += remarks_on_limits(family.limits, family.arch, config)
    keys = key_values(family.keys, values, hparams)
    return ConfigFacts(tuple(keys), hparams, tuple(remarks))


def _refuse_contradictions(values: Mapping[str, Value]) -> None:
    """Numbers that must go with each other, by the fields of `Hparams`; those that are missing go with all."""

    def size(field: str, default: int) -> int:
        return int(values.get(field, default))

    n_embd, n_head = size("n_embd", 0), size("n_head", 1)
    n_head_kv, n_expert, n_expert_used = size("n_head_kv", 1), size("n_expert", 0), size("n_expert_used", 0)
    if n_head % n_head_kv:
        message = f"{n_head} attention heads cannot share {n_head_kv} key-value heads"
        raise CheckpointError("config.json", message)
    if "head_dim" not in values and n_embd % n_head:
        message = f"width {n_embd} is no multiple of {n_head} heads"
        raise CheckpointError("config.json", message, "head_dim is missing")
    if n_expert_used > n_expert:
        message = f"{n_expert_used} experts per token, but there are only {n_expert}"
        raise CheckpointError("config.json", message)


def _refuse_other_rotation(rope: Mapping[str, Any], hparams: Hparams) -> None:
    """Refuse a share of rotated dimensions that the family's keys do not say."""
    share = rope.get("partial_rotary_factor")
    if share is None:
        return
    if int(hparams.head_dim * number(rope, "partial_rotary_factor")) != hparams.n_rot:
        message = (
            f"partial_rotary_factor {quoted(share)}: {hparams.n_rot} of the {hparams.head_dim} dimensions"
        )
        raise CheckpointError("config.json", f"{message} of a head are rotated in arch {hparams.arch}")


def shape_dims(family: Family, config: Mapping[str, Any], hparams: Hparams) -> dict[str, int]:
    """The dimensions that the family's shapes and conditions may name.

    Raises:
        CheckpointError: a dimension is missing from the config or is not a size.
    """
    return hparams.dims | {name: whole_number(config, setting, 0) for name, setting in family.dims.items()}


def _is_read(family: Family, told: Any) -> bool:
    """Whether a quantization_config is of weights that can be read: FP8, which is decoded, or MXFP4 where it may be."""
    if not isinstance(told, dict):
        return False
    method = told.get("quant_method")
    if method == "compressed-tensors":
        return told.get("format") == "float-quantized"
    return method == "fp8" or (method == "mxfp4" and family.has_mxfp4)


def _derived(config: Mapping[str, Any], key: str, expression: str) -> int:
    try:
        return evaluate(expression, config)
    except (KeyError, TypeError, ValueError, ArithmeticError):
        message = f"{key} is missing and cannot be derived from {expression}"
        raise CheckpointError("config.json", message) from None
