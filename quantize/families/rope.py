"""Rotary positions: what config.json may say about them, in its old and its new spelling."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from quantize.containers.untrusted import F32_MAX, quoted
from quantize.exceptions import CheckpointError
from quantize.hparams import Hparams, RopeScaling
from quantize.telling import Remark
from quantize.tensors import Array

__all__ = ["normalise_rope", "rope_freqs", "rope_scaling"]

NOT_STRETCHED = ("default", "dynamic")  # llama.cpp has no key for them


def normalise_rope(config: Mapping[str, Any], default_theta: float) -> dict[str, Any]:
    """`rope_parameters` as transformers 5 would have it, from that key or from `rope_scaling` and `rope_theta`.

    Follows transformers' `modeling_rope_utils.py` (`convert_rope_params_to_dict`, `standardize_rope_params`).

    Raises:
        CheckpointError: it is no object, or has an object per type of layer, which no supported family has.
    """
    given = config.get("rope_scaling") or config.get("rope_parameters") or {}
    if not isinstance(given, dict) or any(isinstance(value, dict) for value in given.values()):
        raise CheckpointError("config.json", "rope_parameters must be one object for all layers")
    rope = dict(given)
    theta = config.get("rope_theta")
    rope.setdefault("rope_theta", default_theta if theta is None else theta)
    rope.setdefault("rope_type", rope.get("type", "default"))
    if "partial_rotary_factor" in config:
        rope.setdefault("partial_rotary_factor", config["partial_rotary_factor"])
    if rope["rope_type"] in ("llama3", "yarn", "longrope", "su"):
        outside = config.get("original_max_position_embeddings")
        if outside is not None:
            rope["original_max_position_embeddings"] = outside
        rope.setdefault("original_max_position_embeddings", config.get("max_position_embeddings"))
    return rope


def rope_scaling(rope: Mapping[str, Any]) -> tuple[RopeScaling, list[Remark]]:
    """llama.cpp's view of `rope_parameters` (`conversion/base.py`: set_gguf_parameters), and what it cannot say.

    Raises:
        CheckpointError: the kind is unknown, a number is missing or not a number.
    """
    kind = rope["rope_type"]
    if kind in NOT_STRETCHED:
        left_out = Remark("config.json", f"rope scaling {kind!r} has no GGUF key: it is left out")
        return RopeScaling(), [] if kind == "default" else [left_out]
    if kind == "linear":
        return RopeScaling(kind="linear", factor=_number(rope, "factor")), []
    if kind in ("longrope", "su"):
        return RopeScaling(kind="longrope", n_ctx_orig=_tokens(rope)), []
    if kind == "yarn":
        attn = "attention_factor" if rope.get("attention_factor") is not None else "attn_factor"
        return RopeScaling(
            kind="yarn",
            factor=_number(rope, "factor"),
            n_ctx_orig=_tokens(rope),
            ext_factor=_optional(rope, "extrapolation_factor"),
            attn_factor=_optional(rope, attn),
            beta_fast=_optional(rope, "beta_fast"),
            beta_slow=_optional(rope, "beta_slow"),
        ), []
    if isinstance(kind, str) and kind.lower() == "llama3":
        low, high = _number(rope, "low_freq_factor", 1.0), _number(rope, "high_freq_factor", 4.0)
        if low == high:
            raise CheckpointError("config.json", "rope_parameters: low_freq_factor equals high_freq_factor")
        return RopeScaling(
            kind="llama3",
            factor=_number(rope, "factor", 8.0),
            n_ctx_orig=_tokens(rope),
            low_freq_factor=low,
            high_freq_factor=high,
        ), []
    message = f"rope scaling {quoted(kind)} is not supported"
    raise CheckpointError("config.json", message, "known: linear, yarn, longrope, llama3")


def rope_freqs(hparams: Hparams) -> Array | None:
    """The divisors of llama3's rotary frequencies, F32 [head_dim / 2]; None where the scaling is another.

    `conversion/llama.py`: generate_extra_tensors, in single precision throughout as there.
    """
    rope = hparams.rope_scaling
    if rope.kind != "llama3":
        return None
    f32 = np.float32
    one, n_ctx = f32(1.0), f32(rope.n_ctx_orig)
    exponents = np.arange(0, hparams.head_dim, 2, dtype=f32) / f32(hparams.head_dim)
    # the power in double precision and rounded once, which is what a good single-precision pow gives
    base = float(f32(hparams.rope_freq_base))
    freqs = one / np.power(base, exponents.astype(np.float64)).astype(f32)
    # torch divides a number by a tensor as number * (1 / tensor)
    wavelens = f32(2 * math.pi) * (one / freqs)
    smooth = (n_ctx * (one / wavelens) - f32(rope.low_freq_factor)) / f32(
        rope.high_freq_factor - rope.low_freq_factor
    )
    blend = (one - smooth) / f32(rope.factor) + smooth
    with np.errstate(divide="ignore"):  # outside of the band the blend may be zero, and is not used
        blended = one / blend
    low, high = f32(rope.n_ctx_orig / rope.low_freq_factor), f32(rope.n_ctx_orig / rope.high_freq_factor)
    factors: Array = np.where(wavelens < high, one, np.where(wavelens > low, f32(rope.factor), blended))
    return factors


def _number(rope: Mapping[str, Any], key: str, default: float | None = None) -> float:
    value = rope.get(key, default)
    if type(value) not in (int, float) or not 0 < value <= F32_MAX:
        message = f"rope_parameters: {key} must be a number above 0, not {quoted(value)}"
        raise CheckpointError("config.json", message)
    return float(value)


def _optional(rope: Mapping[str, Any], key: str) -> float | None:
    value = rope.get(key)
    if value is None:
        return None
    if type(value) not in (int, float) or not abs(value) <= F32_MAX:
        message = f"rope_parameters: {key} must be a number, not {quoted(value)}"
        raise CheckpointError("config.json", message)
    return float(value)


def _tokens(rope: Mapping[str, Any]) -> int:
    value = _number(rope, "original_max_position_embeddings")
    if value != int(value) or value >= 2**31:
        message = f"rope_parameters: original_max_position_embeddings {value} is no number of tokens"
        raise CheckpointError("config.json", message)
    return int(value)
