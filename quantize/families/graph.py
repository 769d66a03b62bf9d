"""What llama.cpp's graph of an architecture does, as far as no key of the file says it (src/models).

Pure data: `calibration/forward` computes by it. What a key says (`expert_weights_norm`, `expert_gating_func`) is in
`Hparams`; a graph that does not ask the key fixes it here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["Graph"]

Gating = Literal["softmax", "sigmoid", "softmax_weight"]


@dataclass(frozen=True)
class Graph:
    """The kinds of the steps of a layer; the defaults are those of Llama and Mixtral."""

    norm: Literal["rms", "layer"] = "rms"
    """Layer norms take away the mean, too, and add a bias where there is one."""

    feed_forward_norm: str = "ffn_norm"
    """The norm in front of the feed-forward layer: the name without layer and suffix."""

    attention: Literal["grouped", "fused", "latent", "delta"] = "grouped"
    """Queries, keys and values by a matrix each, by `attn_qkv`, or through the latent vectors of DeepSeek (MLA).

    `delta`: gated attention in some layers, gated delta nets in the others (Qwen3-Next).
    """

    norm_behind_rotation: bool = False
    """Queries and keys are normed (where the model has such norms) behind the rotation, not in front of it."""

    window_every: int = 0
    """Layers attend to the sliding window only, but each n-th one; 0: no layer does."""

    window_first: bool = False
    """Of each group of `window_every` layers the first attends to everything, not the last."""

    activation: Literal["silu", "clamped"] = "silu"
    """Of the gate: `clamped` is GPT-OSS's, which limits gate and up (LLM_FFN_SWIGLU_OAI_MOE)."""

    gating: Gating | None = "softmax"
    """How the router's logits become weights; `softmax_weight` is taken over the chosen ones. None: as the key says."""

    normalized: bool | None = True
    """Whether the weights of the chosen experts are divided by their sum. None: as the key says."""

    scaled: bool = False
    """Whether the weights are multiplied by `expert_weights_scale`."""
