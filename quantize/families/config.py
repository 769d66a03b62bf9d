"""config.json -> a complete config as transformers would have it -> hyper-parameters in llama.cpp's words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from quantize.containers.untrusted import F32_MAX, quoted
from quantize.exceptions import CheckpointError
from quantize.families.language import COMMON_HPARAMS, Family, evaluate
from quantize.families.rope import normalise_rope, rope_scaling
from quantize.hparams import Hparams

__all__ = ["complete_config", "read_hparams", "shape_dims"]

LIMITS = {"n_layer": 512, "n_expert": 1024}  # of llama.cpp's loader
MAX_SIZE = 2**31 - 1


def complete_config(family: Family, raw: Mapping[str, Any]) -> dict[str, Any]:
    """config.json with the class defaults of transformers for missing keys, and `rope_parameters` normalised.

    Raises:
        CheckpointError: the model is quantized already, or has a switch that the family does not support.
    """
    if raw.get("quantization_config"):
        raise CheckpointError(
            "config.json: has a quantization_config: give the BF16, F16 or F32 original instead"
        )
    config = dict(raw)
    for alias, key in family.aliases.items():
        if alias in raw and key not in raw:
            config[key] = raw[alias]
    for key, value in family.defaults.items():
        config.setdefault(key, value)
    for key, expression in family.if_null.items():
        if config.get(key) is None:
            config[key] = _derived(config, key, expression)
    for key, accepted in family.accepted.items():
        if config.get(key) not in accepted:
            names = ", ".join(str(value) for value in accepted)
            raise CheckpointError(
                f"config.json: {key} {quoted(config.get(key))} is not supported for "
                f"{family.architectures[0]}; supported: {names}"
            )
    config["rope_parameters"] = normalise_rope(config, family.rope_theta)
    return config


def read_hparams(family: Family, config: Mapping[str, Any], n_vocab: int) -> tuple[Hparams, list[str]]:
    """The hyper-parameters of a complete config, and remarks on what of it a GGUF cannot say.

    Raises:
        CheckpointError: a number is missing, out of range, or does not go with another.
    """
    sizes = {name: _size(config, key, name) for name, key in _keys(family).items()}
    n_embd, n_head, n_head_kv = sizes["n_embd"], sizes["n_head"], sizes["n_head_kv"]
    if n_head % n_head_kv:
        raise CheckpointError(
            f"config.json: {n_head} attention heads cannot share {n_head_kv} key-value heads"
        )
    explicit = config.get("head_dim") is not None
    if not explicit and n_embd % n_head:
        raise CheckpointError(
            f"config.json: width {n_embd} is no multiple of {n_head} heads; head_dim is missing"
        )
    head_dim = _size(config, "head_dim", "head_dim") if explicit else n_embd // n_head
    if head_dim % 2:
        raise CheckpointError(f"config.json: head_dim {head_dim} is odd: rotary positions need pairs")
    if sizes.get("n_expert_used", 0) > sizes.get("n_expert", 0):
        raise CheckpointError(
            f"config.json: {sizes['n_expert_used']} experts per token, but there are only {sizes['n_expert']}"
        )
    rope = config["rope_parameters"]
    scaling, remarks = rope_scaling(rope)
    window = config.get("sliding_window")
    if type(window) is int and window < sizes["n_ctx_train"]:
        remarks.append(f"the sliding window of {window} tokens is left out, as llama.cpp leaves it out")
    found = Hparams(
        arch=family.arch,
        n_vocab=n_vocab,
        head_dim=head_dim,
        rms_norm_eps=_positive(config.get("rms_norm_eps"), "rms_norm_eps"),
        rope_freq_base=_positive(rope["rope_theta"], "rope_theta"),
        rope_scaling=scaling,
        head_dim_explicit=explicit,
        rope_neox=family.rope_neox,
        **sizes,
    )
    return found, remarks


def shape_dims(family: Family, config: Mapping[str, Any], hparams: Hparams) -> dict[str, int]:
    """The dimensions that the family's shapes and conditions may name.

    Raises:
        CheckpointError: a dimension is missing from the config or is not a size.
    """
    dims = {name: value for name, value in vars(hparams).items() if type(value) is int}
    return dims | {name: _size(config, key, name, minimum=0) for name, key in family.dims.items()}


def _keys(family: Family) -> dict[str, str]:
    return {**COMMON_HPARAMS, **family.hparams}


def _derived(config: Mapping[str, Any], key: str, expression: str) -> int:
    try:
        return evaluate(expression, config)
    except (KeyError, TypeError, ValueError, ArithmeticError):
        raise CheckpointError(
            f"config.json: {key} is missing and cannot be derived from {expression}"
        ) from None


def _size(config: Mapping[str, Any], key: str, name: str, minimum: int = 1) -> int:
    value = config.get(key)
    if type(value) is not int:
        given = "missing" if key not in config else f"{quoted(value)}"
        raise CheckpointError(f"config.json: {key} must be a whole number, but is {given}")
    if not minimum <= value <= LIMITS.get(name, MAX_SIZE):
        raise CheckpointError(
            f"config.json: {key} {quoted(value)} is outside of {minimum}..{LIMITS.get(name, MAX_SIZE)}"
        )
    return value


def _positive(value: Any, key: str) -> float:
    if type(value) not in (int, float) or not 0 < value <= F32_MAX:
        raise CheckpointError(f"config.json: {key} must be a number above 0, but is {quoted(value)}")
    return float(value)
