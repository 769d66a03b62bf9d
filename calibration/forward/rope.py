"""Rotary position embedding: the table of angles, and the rotation of queries and keys."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from quantize.exceptions import CheckpointError
from quantize.hparams import Hparams

__all__ = ["Rope", "latent_scale", "make_rope", "rotate"]


@dataclass(frozen=True)
class Rope:
    """Cosines and sines [P, n_rot/2] of the positions of a chunk; pairs are neighbours, or n_rot/2 apart (`neox`)."""

    cos: Tensor
    sin: Tensor
    neox: bool

    @property
    def n_ctx(self) -> int:
        """Positions of a chunk."""
        return len(self.cos)

    @property
    def n_rot(self) -> int:
        """Dimensions of a head that are rotated, the first ones."""
        return 2 * self.cos.shape[1]


def make_rope(hparams: Hparams, n_ctx: int, factors: Tensor | None = None, device: str = "cpu") -> Rope:
    """Compute the table of the positions 0 to n_ctx - 1, float32 on the device.

    `factors` [n_rot/2] divide the frequencies (the tensors rope_freqs or rope_factors_*). Scalings as in
    llama.cpp: linear; yarn (ggml/src/ggml-cpu/ops.cpp:rope_yarn, and src/llama-context.cpp, which cancels the
    attention factor of the file wherever ext_factor is not 0); llama3 and longrope are in the factors.

    Raises:
        CheckpointError: the scaling is of another kind.
    """
    d = hparams.n_rot
    scaling = hparams.rope_scaling
    exponents = torch.arange(0, d, 2, dtype=torch.float64) / d
    frequencies = hparams.rope_freq_base**-exponents  # [n_rot/2]
    if factors is not None:
        frequencies = frequencies / factors.double()
    magnitude = 1.0
    if scaling.kind == "linear":
        frequencies = frequencies / scaling.factor
    elif scaling.kind == "yarn":
        ext_factor = 1.0 if scaling.ext_factor is None else scaling.ext_factor
        if ext_factor:
            ramp = _yarn_ramp(hparams) * ext_factor
            # with DeepSeek's multiplier the scale of attention has it all (see latent_scale)
            magnitude = 1.0 if _log_multiplier(hparams) else 1.0 + 0.1 * math.log(scaling.factor)
        else:
            ramp = torch.zeros(d // 2, dtype=torch.float64)
            magnitude = 1.0 if scaling.attn_factor is None else scaling.attn_factor
        frequencies = frequencies / scaling.factor * (1 - ramp) + frequencies * ramp
    elif scaling.kind not in ("none", "llama3", "longrope"):
        raise CheckpointError(
            f"{hparams.arch}.rope.scaling.type",
            f"rope scaling {scaling.kind!r} is not known",
            "known: linear, yarn, llama3, longrope",
        )
    angles = torch.arange(n_ctx, dtype=torch.float64)[:, None] * frequencies
    magnitude *= hparams.rope_attn_factor
    cos, sin = ((wave * magnitude).float().to(device) for wave in (angles.cos(), angles.sin()))
    return Rope(cos, sin, hparams.rope_neox)


def latent_scale(hparams: Hparams) -> float:
    """The factor of the products of queries and keys in latent attention.

    1/sqrt(head_dim), times the square of what YaRN makes of it (llama.cpp's src/models/deepseek2.cpp: kq_scale, and
    src/llama-context.cpp: yarn_attn_factor).
    """
    scaling = hparams.rope_scaling
    log_factor = math.log(scaling.factor) if scaling.kind in ("linear", "yarn") else 0.0
    is_extended = scaling.kind == "yarn" and scaling.ext_factor != 0
    multiplier = _log_multiplier(hparams)
    attn_factor = 1.0 if is_extended or scaling.attn_factor is None else scaling.attn_factor
    if not (is_extended and multiplier):
        attn_factor *= 1.0 + 0.1 * log_factor
    mscale = attn_factor * (1.0 + 0.1 * multiplier * log_factor)
    return mscale**2 / math.sqrt(hparams.dims["head_dim_mla"])


def _log_multiplier(hparams: Hparams) -> float:
    """YaRN's `mscale_all_dim`, of which the key holds a tenth; 0 where there is none."""
    return float(hparams.extra.get("yarn_log_mul", 0.0)) / 0.1


def _yarn_ramp(hparams: Hparams) -> Tensor:
    """Share of extrapolation per pair [n_rot/2] (ggml.c:ggml_rope_yarn_corr_dims, ops.cpp:rope_yarn_ramp)."""
    d, scaling = hparams.n_rot, hparams.rope_scaling
    n_ctx_orig = scaling.n_ctx_orig or hparams.n_ctx_train

    def pair_of(n_rotations: float) -> float:
        span = math.log(n_ctx_orig / (n_rotations * 2 * math.pi))
        return d * span / (2 * math.log(hparams.rope_freq_base))

    low = max(0, math.floor(pair_of(32.0 if scaling.beta_fast is None else scaling.beta_fast)))
    high = min(d - 1, math.ceil(pair_of(1.0 if scaling.beta_slow is None else scaling.beta_slow)))
    pairs = torch.arange(d // 2, dtype=torch.float64)
    return 1 - ((pairs - low) / max(0.001, high - low)).clamp(0, 1)


def rotate(x: Tensor, rope: Rope) -> Tensor:
    """Turn each pair of the first `rope.n_rot` dimensions of x [C, P, H, d] by its angle; [C, P, H, d] in x's type.

    The result holds the first members of all pairs first, however the pairs lie: queries and keys are put in the same
    order, and only their dot product is taken.
    """
    if x.shape[-1] > rope.n_rot:
        turned = rotate(x[..., : rope.n_rot], rope)
        return torch.cat((turned, x[..., rope.n_rot :]), dim=-1)
    wide = x.float()
    half = rope.n_rot // 2
    a, b = (wide[..., :half], wide[..., half:]) if rope.neox else (wide[..., 0::2], wide[..., 1::2])
    c, s = rope.cos[:, None, :], rope.sin[:, None, :]
    return torch.cat((a * c - b * s, a * s + b * c), dim=-1).to(x.dtype)
