"""One layer in plain torch: flat functions, activations in, activations out.

Shape alphabet: `T` tokens, `C` chunks, `P` positions of a chunk, `H` heads, `G` key heads, `d` head_dim, `D`
n_embd, `F` n_ff, `E` experts, `K` experts used. Norms, rotary tables, softmax and the router work in float32;
matrix products work in the type of their operands (`Arithmetic.dtype`) and accumulate in float32.
"""

from __future__ import annotations

import math
import textwrap
import warnings
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from quantize.exceptions import CheckpointError, DeviceError
from quantize.hparams import Hparams
from quantize.tensors import Array

__all__ = [
    "Arithmetic",
    "Routing",
    "attend",
    "best_dtype",
    "refuse_device",
    "rms_norm",
    "rope_table",
    "rotate",
    "route",
    "swiglu",
    "to_tensor",
]

MIN_WEIGHT_SUM = (
    6.103515625e-5  # src/llama-graph.cpp:build_moe_ffn clamps the sum before it divides (smallest f16)
)


@dataclass(frozen=True)
class Arithmetic:
    """Where matrix products run and in which type: torch.float32 or torch.bfloat16."""

    device: str = "cpu"
    dtype: torch.dtype = torch.float32


@dataclass(frozen=True)
class Routing:
    """Which experts each token goes to: `ids` int64 [T, K], their `weights` f32 [T, K], all `probs` f32 [T, E]."""

    ids: Tensor
    weights: Tensor
    probs: Tensor


def best_dtype(device: str = "cpu") -> torch.dtype:
    """bfloat16 where the hardware multiplies it, else float32 (emulated products are slower than exact ones)."""
    if device != "cpu":
        return torch.bfloat16
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    has = any(getattr(torch.cpu, check, lambda: False)() for check in checks)
    return torch.bfloat16 if has else torch.float32


def refuse_device(device: str) -> None:
    """Before hours of work: torch must be able to compute on a device, in float64, too (as mps cannot).

    Raises:
        DeviceError: it cannot; the message says why, and what it can.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of names that torch once knew
            torch.ones(1, dtype=torch.float64, device=device).add_(1.0).item()
    except Exception as error:  # of any kind: each backend has its own
        reason = textwrap.shorten(str(error).partition("\n")[0], 90, placeholder=" ...")
        usable = "cpu, cuda" if torch.cuda.is_available() else "cpu"
        raise DeviceError(
            f"--device {device}: torch cannot compute there ({reason}); it can on: {usable}"
        ) from error


def to_tensor(array: Array, device: str = "cpu", dtype: torch.dtype | None = None) -> Tensor:
    """Weights as a source reads them (uint16 holds bfloat16), in `dtype` or as they are; shares memory if it can."""
    if not array.flags.writeable:
        array = array.copy()  # torch warns of tensors that could be written although their memory must not be
    if array.dtype.kind == "u":
        tensor = torch.from_numpy(array.view("<i2")).view(torch.bfloat16)
    else:
        tensor = torch.from_numpy(array)
    return tensor.to(device, dtype)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x [T, D] / rms(x) * weight [D], in float32."""
    wide = x.float()
    return wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * weight


def rope_table(hparams: Hparams, n_ctx: int, factors: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Cosines and sines [P, d/2] of the positions 0 to n_ctx - 1, in float32.

    `factors` [d/2] divide the frequencies (the tensors rope_freqs or rope_factors_*). Scalings as in
    llama.cpp: linear; yarn (ggml/src/ggml-cpu/ops.cpp:rope_yarn, and src/llama-context.cpp, which cancels the
    attention factor of the file wherever ext_factor is not 0); llama3 and longrope are in the factors.
    """
    d = hparams.head_dim
    scaling = hparams.rope_scaling
    exponents = torch.arange(0, d, 2, dtype=torch.float64) / d
    frequencies = hparams.rope_freq_base**-exponents  # [d/2]
    if factors is not None:
        frequencies = frequencies / factors.double()
    magnitude = 1.0
    if scaling.kind == "linear":
        frequencies = frequencies / scaling.factor
    elif scaling.kind == "yarn":
        ext_factor = 1.0 if scaling.ext_factor is None else scaling.ext_factor
        if ext_factor:
            ramp = _yarn_ramp(hparams) * ext_factor
            magnitude = 1.0 + 0.1 * math.log(scaling.factor)
        else:
            ramp = torch.zeros(d // 2, dtype=torch.float64)
            magnitude = 1.0 if scaling.attn_factor is None else scaling.attn_factor
        frequencies = frequencies / scaling.factor * (1 - ramp) + frequencies * ramp
    elif scaling.kind not in ("none", "llama3", "longrope"):
        raise CheckpointError(
            f"rope scaling {scaling.kind!r} is not known; known: linear, yarn, llama3, longrope"
        )
    angles = torch.arange(n_ctx, dtype=torch.float64)[:, None] * frequencies
    return (angles.cos() * magnitude).float(), (angles.sin() * magnitude).float()


def _yarn_ramp(hparams: Hparams) -> Tensor:
    """Share of extrapolation per pair [d/2] (ggml.c:ggml_rope_yarn_corr_dims, ops.cpp:rope_yarn_ramp)."""
    d, scaling = hparams.head_dim, hparams.rope_scaling
    n_ctx_orig = scaling.n_ctx_orig or hparams.n_ctx_train

    def pair_of(n_rotations: float) -> float:
        span = math.log(n_ctx_orig / (n_rotations * 2 * math.pi))
        return d * span / (2 * math.log(hparams.rope_freq_base))

    low = max(0, math.floor(pair_of(32.0 if scaling.beta_fast is None else scaling.beta_fast)))
    high = min(d - 1, math.ceil(pair_of(1.0 if scaling.beta_slow is None else scaling.beta_slow)))
    pairs = torch.arange(d // 2, dtype=torch.float64)
    return 1 - ((pairs - low) / max(0.001, high - low)).clamp(0, 1)


def rotate(x: Tensor, cos: Tensor, sin: Tensor, *, neox: bool) -> Tensor:
    """Turn each pair of x [C, P, H, d] by its angle [P, d/2]; returns [C, P, H, d] in x's type.

    Pairs are neighbours, or half a head apart (`neox`). The result has first members first in either case:
    queries and keys are put in the same order, and nothing but their dot product is ever taken.
    """
    wide = x.float()
    half = x.shape[-1] // 2
    a, b = (wide[..., :half], wide[..., half:]) if neox else (wide[..., 0::2], wide[..., 1::2])
    c, s = cos[:, None, :], sin[:, None, :]
    return torch.cat((a * c - b * s, a * s + b * c), dim=-1).to(x.dtype)


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal attention within each chunk: q [C, P, H, d], k and v [C, P, G, d] -> [C, P, H, d]; H a multiple of G."""
    n_group = q.shape[2] // k.shape[2]
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # [C, H or G, P, d]
    if n_group > 1:
        k, v = k.repeat_interleave(n_group, dim=1), v.repeat_interleave(n_group, dim=1)
    return functional.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)


def route(x: Tensor, router: Tensor, n_used: int, ids: Tensor | None = None) -> Routing:
    """Mixtral's router: softmax over all experts, the best `n_used`, their probabilities scaled to a sum of 1.

    x [T, D] and router [E, D] are taken in float32. With `ids` [T, K] given, those experts are used instead
    of the best.
    """
    probs = functional.linear(x.float(), router.float()).softmax(-1)  # [T, E]
    if ids is None:
        ids = probs.topk(n_used, dim=-1).indices
    chosen = probs.gather(-1, ids)  # [T, K]
    return Routing(ids, chosen / chosen.sum(-1, keepdim=True).clamp(min=MIN_WEIGHT_SUM), probs)


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up, [T, F]; overwrites `gate`."""
    return functional.silu(gate, inplace=True).mul_(up)
