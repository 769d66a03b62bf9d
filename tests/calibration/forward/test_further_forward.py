"""The forward pass of MiniMax-M2, ERNIE 4.5, Hunyuan, Ling, DBRX and Qwen3-Next against plain torch.

`logits_of` is written from the models' own code, and takes the tensors by the names and in the layout of their
publishers. llama.cpp's graphs agree with it but where they are known to differ from the models' code (ERNIE's and
Hunyuan's shared experts are added as they are, there and here).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pico import as_stored, to_f32
from pico_further import CASES, HD, E, G, H, N, write
from torch import Tensor
from torch.nn import functional

from calibration.forward.run import forward
from calibration.forward.settings import ForwardSettings
from calibration.forward.streams import Stream
from quantize.exceptions import CheckpointError
from quantize.sources.checkpoint import open_checkpoint

TOKENS = np.random.default_rng(7).integers(0, 96, (2, 12)).astype(np.int32)
THETA, EPS = 5e5, 1e-5

Weights = Mapping[str, Tensor]


def rms(x: Tensor, weight: Tensor) -> Tensor:
    return functional.rms_norm(x, weight.shape, weight, EPS)


def turned(x: Tensor, n_rot: int, *, neighbours: bool = False) -> Tensor:
    """Rotary positions of x [P, heads, HD], by complex numbers; pairs are halves of the rotated part, or neighbours."""
    angles = torch.outer(torch.arange(len(x)), THETA ** -(torch.arange(0, n_rot, 2) / n_rot))
    spin = torch.polar(torch.ones_like(angles), angles)[:, None]
    part = x[..., :n_rot]
    shape = part.shape[:-1]
    pairs = part.reshape(*shape, -1, 2) if neighbours else part.reshape(*shape, 2, -1).transpose(-1, -2)
    spun = torch.view_as_real(torch.view_as_complex(pairs.contiguous()) * spin)
    spun = (spun if neighbours else spun.transpose(-1, -2)).flatten(-2)
    return torch.cat((spun, x[..., n_rot:]), -1)


def attended(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Queries [P, H, HD], keys and values [P, G, HD] -> [P, H*HD]."""
    k, v = (x.repeat_interleave(H // G, 1) for x in (k, v))
    scores = torch.einsum("phd,qhd->hpq", q, k) / HD**0.5
    seen = torch.ones(len(q), len(q)).tril().bool()
    return torch.einsum("hpq,qhd->phd", scores.masked_fill(~seen, -torch.inf).softmax(-1), v).flatten(1)


def swiglu(w: Weights, prefix: str, x: Tensor, names: str = "gate_proj up_proj down_proj") -> Tensor:
    gate, up, down = (w[f"{prefix}.{name}.weight"] for name in names.split())
    return (functional.silu(x @ gate.T) * (x @ up.T)) @ down.T


def mixed(
    probs: Tensor, scores: Tensor, expert: Callable[[int, Tensor], Tensor], x: Tensor, scale: float = 1.0
) -> Tensor:
    """The sum of the two experts with the best scores, weighed by their probabilities divided by their sum."""
    y = torch.zeros_like(x)
    for p in range(len(x)):
        best = sorted(range(E), key=lambda xid: -float(scores[p, xid]))[:2]
        total = sum(float(probs[p, xid]) for xid in best)
        for xid in best:
            y[p] += scale * probs[p, xid] / total * expert(xid, x[p : p + 1])[0]
    return y


def heads(x: Tensor) -> Tensor:
    return x.reshape(len(x), -1, HD)


def minimax_layer(w: Weights, layer: str, x: Tensor) -> Tensor:
    y = rms(x, w[layer + "input_layernorm.weight"])
    q, k, v = (y @ w[f"{layer}self_attn.{name}_proj.weight"].T for name in "qkv")
    q = turned(heads(rms(q, w[layer + "self_attn.q_norm.weight"])), HD // 2)
    k = turned(heads(rms(k, w[layer + "self_attn.k_norm.weight"])), HD // 2)
    x = x + attended(q, k, heads(v)) @ w[layer + "self_attn.o_proj.weight"].T
    y = rms(x, w[layer + "post_attention_layernorm.weight"])
    moe = layer + "block_sparse_moe."
    probs = (y @ w[moe + "gate.weight"].T).sigmoid()
    scores = probs + w[moe + "e_score_correction_bias"]
    return x + mixed(probs, scores, lambda xid, z: swiglu(w, f"{moe}experts.{xid}", z, "w1 w3 w2"), y)


def ernie_layer(w: Weights, layer: str, x: Tensor) -> Tensor:
    y = rms(x, w[layer + "input_layernorm.weight"])
    q, k, v = (heads(y @ w[f"{layer}self_attn.{name}_proj.weight"].T) for name in "qkv")
    q, k = turned(q, HD, neighbours=True), turned(k, HD, neighbours=True)
    x = x + attended(q, k, v) @ w[layer + "self_attn.o_proj.weight"].T
    y = rms(x, w[layer + "post_attention_layernorm.weight"])
    if layer + "mlp.gate.weight" not in w:
        return x + swiglu(w, layer + "mlp", y)
    probs = (y @ w[layer + "mlp.gate.weight"].T).softmax(-1)
    scores = probs + w[layer + "mlp.moe_statics.e_score_correction_bias"]
    routed = mixed(probs, scores, lambda xid, z: swiglu(w, f"{layer}mlp.experts.{xid}", z), y)
    return x + routed + swiglu(w, layer + "mlp.shared_experts", y)


def hunyuan_layer(w: Weights, layer: str, x: Tensor) -> Tensor:
    y = rms(x, w[layer + "input_layernorm.weight"])
    q, k, v = (heads(y @ w[f"{layer}self_attn.{name}_proj.weight"].T) for name in "qkv")
    q = rms(turned(q, HD), w[layer + "self_attn.query_layernorm.weight"])
    k = rms(turned(k, HD), w[layer + "self_attn.key_layernorm.weight"])
    x = x + attended(q, k, v) @ w[layer + "self_attn.o_proj.weight"].T
    y = rms(x, w[layer + "post_attention_layernorm.weight"])
    probs = (y @ w[layer + "mlp.gate.wg.weight"].T).softmax(-1)
    routed = mixed(probs, probs, lambda xid, z: swiglu(w, f"{layer}mlp.experts.{xid}", z), y)
    return x + routed + swiglu(w, layer + "mlp.shared_mlp", y)


def ling_layer(w: Weights, layer: str, x: Tensor) -> Tensor:
    """Both generations: the second has norms of queries and keys."""
    y = rms(x, w[layer + "input_layernorm.weight"])
    qkv = heads(y @ w[layer + "attention.query_key_value.weight"].T)
    q, k, v = qkv[:, :H], qkv[:, H : H + G], qkv[:, H + G :]
    second = layer + "attention.query_layernorm.weight" in w
    if second:
        q = rms(q, w[layer + "attention.query_layernorm.weight"])
        k = rms(k, w[layer + "attention.key_layernorm.weight"])
    n_rot = HD // 2 if second else HD
    x = x + attended(turned(q, n_rot), turned(k, n_rot), v) @ w[layer + "attention.dense.weight"].T
    y = rms(x, w[layer + "post_attention_layernorm.weight"])
    if layer + "mlp.gate.weight" not in w:
        return x + swiglu(w, layer + "mlp", y)
    logits = y @ w[layer + "mlp.gate.weight"].T
    probs = logits.sigmoid() if second else logits.softmax(-1)
    scores = probs
    if second:  # two groups of two experts, of which the one with the higher sum is asked
        scores = probs + w[layer + "mlp.gate.expert_bias"]
        left = scores[:, :2].sum(-1) > scores[:, 2:].sum(-1)
        asked = torch.stack((left, left, ~left, ~left), -1)
        scores = scores.masked_fill(~asked, -torch.inf)
    scale = 2.5 if second else 1.0
    routed = mixed(probs, scores, lambda xid, z: swiglu(w, f"{layer}mlp.experts.{xid}", z), y, scale)
    return x + routed + swiglu(w, layer + "mlp.shared_experts", y)


def dbrx_layer(w: Weights, layer: str, x: Tensor) -> Tensor:
    def norm(x: Tensor, name: str) -> Tensor:
        weight = w[f"{layer}norm_attn_norm.{name}.weight"]
        return functional.layer_norm(x, weight.shape, weight, eps=1e-5)

    def expert(xid: int, x: Tensor) -> Tensor:
        w1, v1, w2 = (
            w[f"{layer}ffn.experts.mlp.{name}"].view(E, -1, x.shape[-1])[xid] for name in ("w1", "v1", "w2")
        )
        return (functional.silu(x @ w1.T) * (x @ v1.T)) @ w2

    qkv = heads((norm(x, "norm_1") @ w[layer + "norm_attn_norm.attn.Wqkv.weight"].T).clamp(-1.5, 1.5))
    q, k, v = qkv[:, :H], qkv[:, H : H + G], qkv[:, H + G :]
    x = x + attended(turned(q, HD), turned(k, HD), v) @ w[layer + "norm_attn_norm.attn.out_proj.weight"].T
    y = norm(x, "norm_2")
    probs = (y @ w[layer + "ffn.router.layer.weight"].T).softmax(-1)
    return x + mixed(probs, probs, expert, y)


def delta_net(w: Weights, net: str, x: Tensor) -> Tensor:
    """Two key heads and four value heads of width 8, token by token with a state for each value head."""
    d, n_ctx = 8, len(x)
    by_key_head = (x @ w[net + "in_proj_qkvz.weight"].T).reshape(n_ctx, 2, 6 * d)
    q, k = (by_key_head[:, :, i * d : (i + 1) * d].reshape(n_ctx, 2 * d) for i in (0, 1))
    v, z = (by_key_head[:, :, i * d : (i + 2) * d].reshape(n_ctx, 4 * d) for i in (2, 4))
    channels = torch.cat((q, k, v), -1)
    padded = torch.cat((torch.zeros(3, channels.shape[1]), channels))
    kernel = w[net + "conv1d.weight"][:, 0]
    channels = functional.silu(torch.stack([padded[i : i + n_ctx] * kernel[:, i] for i in range(4)]).sum(0))
    ba = (x @ w[net + "in_proj_ba.weight"].T).reshape(n_ctx, 2, 4)
    rows = []
    states = [torch.zeros(d, d) for _ in range(4)]
    for p in range(n_ctx):
        outputs = []
        for head in range(4):
            of_key = head // 2
            q_p, k_p = (channels[p, start + of_key * d :][:d] for start in (0, 2 * d))
            q_p, k_p = (one / (one.square().sum() + EPS).sqrt() for one in (q_p, k_p))
            v_p = channels[p, (4 + head) * d :][:d]
            strength, step = ba[p, of_key, head % 2].sigmoid(), ba[p, of_key, 2 + head % 2]
            rate = functional.softplus(step + w[net + "dt_bias"][head]) * w[net + "A_log"][head].exp()
            faded = states[head] * (-rate).exp()
            states[head] = faded + torch.outer(k_p, strength * (v_p - k_p @ faded))
            y = rms(q_p / d**0.5 @ states[head], w[net + "norm.weight"])
            outputs.append(y * functional.silu(z[p, head * d :][:d]))
        rows.append(torch.cat(outputs))
    return torch.stack(rows) @ w[net + "out_proj.weight"].T


def qwen3next_layer(w: Weights, layer: str, x: Tensor) -> Tensor:
    y = rms(x, 1 + w[layer + "input_layernorm.weight"])
    if layer + "self_attn.q_proj.weight" in w:
        attention = layer + "self_attn."
        q_and_gate = (y @ w[attention + "q_proj.weight"].T).reshape(len(x), H, 2 * HD)
        q = turned(rms(q_and_gate[..., :HD], 1 + w[attention + "q_norm.weight"]), HD // 4)
        k = heads(y @ w[attention + "k_proj.weight"].T)
        k = turned(rms(k, 1 + w[attention + "k_norm.weight"]), HD // 4)
        gate = q_and_gate[..., HD:].reshape(len(x), -1).sigmoid()
        mixture = attended(q, k, heads(y @ w[attention + "v_proj.weight"].T)) * gate
        x = x + mixture @ w[attention + "o_proj.weight"].T
    else:
        x = x + delta_net(w, layer + "linear_attn.", y)
    y = rms(x, 1 + w[layer + "post_attention_layernorm.weight"])
    probs = (y @ w[layer + "mlp.gate.weight"].T).softmax(-1)
    routed = mixed(probs, probs, lambda xid, z: swiglu(w, f"{layer}mlp.experts.{xid}", z), y)
    weight = (y @ w[layer + "mlp.shared_expert_gate.weight"].T).sigmoid()
    return x + routed + weight * swiglu(w, layer + "mlp.shared_expert", y)


LAYERS: dict[str, Callable[[Weights, str, Tensor], Tensor]] = {
    "minimax_m2": minimax_layer,
    "ernie4_5": ernie_layer,
    "ernie4_5_moe": ernie_layer,
    "hunyuan_moe": hunyuan_layer,
    "bailingmoe": ling_layer,
    "bailingmoe2": ling_layer,
    "dbrx": dbrx_layer,
    "qwen3next": qwen3next_layer,
}


def logits_of(name: str, w: Weights, ids: Tensor) -> Tensor:
    """[P, V] of the tokens ids [P]."""
    embedding = next(values for key, values in w.items() if "embed" in key or key.endswith("wte.weight"))
    x = embedding[ids]
    for bid in range(4 if name == "qwen3next" else N):
        prefix = "transformer.blocks." if name == "dbrx" else "model.layers."
        x = LAYERS[name](w, f"{prefix}{bid}.", x)
    if name == "dbrx":
        x = functional.layer_norm(x, x.shape[-1:], w["transformer.norm_f.weight"], eps=1e-5)
    else:
        x = rms(x, w["model.norm.weight"] + (1 if name == "qwen3next" else 0))
    return x @ w.get("lm_head.weight", embedding).T


def our_logits(path: Path) -> Tensor:
    found: dict[int, Tensor] = {}
    forward(
        [Stream(open_checkpoint(path))],
        TOKENS,
        settings=ForwardSettings(dtype=torch.float32),
        on_logits=lambda chunk, logits: found.__setitem__(chunk, logits[0].clone()),
    )
    return torch.stack([found[chunk] for chunk in range(len(TOKENS))])


@pytest.mark.parametrize("name", LAYERS)
def test_logits_are_those_of_plain_torch(tmp_path: Path, name: str) -> None:
    tensors, config = CASES[name](seed=3)
    ours = our_logits(write(tmp_path, (tensors, config)))
    stored = {key: torch.from_numpy(to_f32(values)) for key, values in as_stored(tensors, "BF16").items()}
    for chunk, ids in enumerate(TOKENS):
        truth = logits_of(name, stored, torch.from_numpy(ids).long())
        torch.testing.assert_close(ours[chunk], truth, rtol=1e-4, atol=2e-4)


def test_the_limit_of_dbrx_is_kept(tmp_path: Path) -> None:
    """The case would not notice a limit that nothing reaches."""
    tensors, config = CASES["dbrx"]()
    limited = our_logits(write(tmp_path / "limited", (tensors, config)))
    config["attn_config"]["clip_qkv"] = 100.0
    free = our_logits(write(tmp_path / "free", (tensors, config)))
    assert (limited - free).abs().max() > 0.01


def test_a_selection_bias_only_selects(tmp_path: Path) -> None:
    """A bias that is the same for all experts changes nothing."""
    tensors, config = CASES["minimax_m2"]()
    even: dict[str, Any] = {
        name: values * 0 + 3 if name.endswith("correction_bias") else values
        for name, values in tensors.items()
    }
    none = {
        name: values * 0 if name.endswith("correction_bias") else values for name, values in tensors.items()
    }
    one = our_logits(write(tmp_path / "even", (even, config)))
    other = our_logits(write(tmp_path / "none", (none, config)))
    torch.testing.assert_close(one, other)


def test_a_tensor_that_no_step_takes_is_refused(tmp_path: Path) -> None:
    tensors, config = CASES["bailingmoe"]()
    tensors["model.layers.0.attention.query_layernorm.weight"] = np.ones(HD, np.float32)
    with pytest.raises(CheckpointError, match="would not be read"):
        open_checkpoint(write(tmp_path, (tensors, config)))


@pytest.mark.parametrize(
    ("name", "trunk"), [("bailingmoe2_mtp", "bailingmoe2"), ("qwen3next_mtp", "qwen3next")]
)
def test_layers_for_further_tokens_are_no_part_of_the_pass(tmp_path: Path, name: str, trunk: str) -> None:
    tensors, config = CASES[name](seed=3)
    ours = our_logits(write(tmp_path, (tensors, config)))
    stored = {key: torch.from_numpy(to_f32(values)) for key, values in as_stored(tensors, "BF16").items()}
    for chunk, ids in enumerate(TOKENS):
        truth = logits_of(trunk, stored, torch.from_numpy(ids).long())
        torch.testing.assert_close(ours[chunk], truth, rtol=1e-4, atol=2e-4)
