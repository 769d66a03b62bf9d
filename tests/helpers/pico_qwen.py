"""Tiny checkpoints of the Qwen and OLMoE families with random weights, in the layouts that exist.

`split` has three matrices per expert (transformers saves so, mergekit-moe of Qwen2 donors, too), `fused` all experts of
a layer in two tensors (transformers 5 in memory, mergekit-moe of Qwen3 donors).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pico

Array = pico.Array
Layout = Literal["split", "fused", "fused.weight"]

ARCHITECTURES = {
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "qwen2moe": "Qwen2MoeForCausalLM",
    "qwen3moe": "Qwen3MoeForCausalLM",
    "olmoe": "OlmoeForCausalLM",
}
MODEL_TYPES = {"qwen2moe": "qwen2_moe", "qwen3moe": "qwen3_moe"}
WITH_EXPERTS = ("qwen2moe", "qwen3moe", "olmoe")
WITH_BIASES = ("qwen2", "qwen2moe")
WITH_HEAD_NORMS = ("qwen3", "qwen3moe")

N_EMBD, N_HEAD, N_FF, N_FF_EXP, N_FF_SHEXP, N_EXPERT, N_VOCAB = 64, 4, 96, 48, 80, 5, 320


def pico_qwen(
    path: Path,
    name: str,
    *,
    layout: Layout = "split",
    n_layer: int = 2,
    n_expert: int = N_EXPERT,
    n_ff_exp: int = N_FF_EXP,
    tied: bool = False,
    n_shards: int = 1,
    tokenizer: bool = False,
    seed: int = 0,
    **config: Any,
) -> Path:
    """A checkpoint of the family `name`; further keywords go into config.json. Returns the folder."""
    weights = random_weights(
        name, n_layer=n_layer, n_expert=n_expert, n_ff_exp=n_ff_exp, tied=tied, seed=seed
    )
    if layout != "split" and name in WITH_EXPERTS:
        weights = fused(weights, n_layer, n_expert, layout.removeprefix("fused"))
    settings = config_of(name, n_layer=n_layer, n_expert=n_expert, n_ff_exp=n_ff_exp, tied=tied)
    pico.write_checkpoint(path, pico.as_stored(weights, "BF16"), settings | config, n_shards)
    if tokenizer:
        pico.write_tokenizer(path, N_VOCAB)
    return path


def n_head_kv(name: str) -> int:
    """OLMoE norms all heads together, and has as many key heads as query heads."""
    return N_HEAD if name == "olmoe" else 2


def head_dim(name: str) -> int:
    """Qwen3's heads need not divide the width."""
    return 24 if name in WITH_HEAD_NORMS else N_EMBD // N_HEAD


def random_weights(
    name: str, *, n_layer: int, n_expert: int, n_ff_exp: int, tied: bool, seed: int
) -> dict[str, Array]:
    """All tensors in the layout of one matrix per expert, float32."""
    rng = np.random.default_rng([seed, len(name)])

    def matrix(*shape: int) -> Array:
        return rng.standard_normal(shape, dtype=np.float32) / np.float32(np.sqrt(shape[-1]))

    def norm(n: int) -> Array:
        return 1 + matrix(n)

    def network(prefix: str, width: int) -> dict[str, Array]:
        return {
            prefix + "gate_proj.weight": matrix(width, N_EMBD),
            prefix + "up_proj.weight": matrix(width, N_EMBD),
            prefix + "down_proj.weight": matrix(N_EMBD, width),
        }

    n_q, n_kv = N_HEAD * head_dim(name), n_head_kv(name) * head_dim(name)
    weights = {"model.embed_tokens.weight": rng.standard_normal((N_VOCAB, N_EMBD), dtype=np.float32)}
    for bid in range(n_layer):
        layer = f"model.layers.{bid}."
        for part, width in (("q", n_q), ("k", n_kv), ("v", n_kv)):
            weights[f"{layer}self_attn.{part}_proj.weight"] = matrix(width, N_EMBD)
            if name in WITH_BIASES:
                weights[f"{layer}self_attn.{part}_proj.bias"] = matrix(width)
        weights[layer + "self_attn.o_proj.weight"] = matrix(N_EMBD, n_q)
        if name in WITH_HEAD_NORMS or name == "olmoe":
            for part, width in (("q", n_q), ("k", n_kv)):
                n_normed = width if name == "olmoe" else head_dim(name)
                weights[f"{layer}self_attn.{part}_norm.weight"] = norm(n_normed)
        weights[layer + "input_layernorm.weight"] = norm(N_EMBD)
        weights[layer + "post_attention_layernorm.weight"] = norm(N_EMBD)
        if name not in WITH_EXPERTS:
            weights |= network(layer + "mlp.", N_FF)
            continue
        weights[layer + "mlp.gate.weight"] = matrix(n_expert, N_EMBD)
        for xid in range(n_expert):
            weights |= network(f"{layer}mlp.experts.{xid}.", n_ff_exp)
        if name == "qwen2moe":
            weights |= network(layer + "mlp.shared_expert.", N_FF_SHEXP)
            weights[layer + "mlp.shared_expert_gate.weight"] = matrix(1, N_EMBD)
    weights["model.norm.weight"] = norm(N_EMBD)
    if not tied:
        weights["lm_head.weight"] = matrix(N_VOCAB, N_EMBD)
    return weights


def fused(weights: Mapping[str, Array], n_layer: int, n_expert: int, suffix: str) -> dict[str, Array]:
    """The same model with all experts of a layer in two tensors."""
    found = {name: values for name, values in weights.items() if ".experts." not in name}
    for bid in range(n_layer):
        experts = f"model.layers.{bid}.mlp.experts."
        gate, up, down = (
            np.stack([weights[f"{experts}{xid}.{part}_proj.weight"] for xid in range(n_expert)])
            for part in ("gate", "up", "down")
        )
        found[f"{experts}gate_up_proj{suffix}"] = np.concatenate([gate, up], axis=1)
        found[f"{experts}down_proj{suffix}"] = down
    return found


def config_of(name: str, *, n_layer: int, n_expert: int, n_ff_exp: int, tied: bool) -> dict[str, Any]:
    """config.json as on the Hub."""
    config: dict[str, Any] = {
        "architectures": [ARCHITECTURES[name]],
        "model_type": MODEL_TYPES.get(name, name),
        "hidden_size": N_EMBD,
        "intermediate_size": n_ff_exp if name == "olmoe" else N_FF,
        "num_hidden_layers": n_layer,
        "num_attention_heads": N_HEAD,
        "num_key_value_heads": n_head_kv(name),
        "vocab_size": N_VOCAB,
        "max_position_embeddings": 256,
        "rms_norm_eps": 1e-5 if name == "olmoe" else 1e-6,
        "rope_theta": 1000000.0,
        "hidden_act": "silu",
        "bos_token_id": 1,
        "eos_token_id": 2,
        "tie_word_embeddings": tied,
        "torch_dtype": "bfloat16",
    }
    if name != "olmoe":
        config |= {"use_sliding_window": False, "sliding_window": 128, "max_window_layers": 1}
    if name in WITH_HEAD_NORMS:
        config |= {"head_dim": head_dim(name), "attention_bias": False}
    if name in WITH_EXPERTS:
        config |= {
            "num_experts": n_expert,
            "num_experts_per_tok": 2,
            "norm_topk_prob": name == "qwen3moe",
        }
    if name in ("qwen2moe", "qwen3moe"):
        config |= {"moe_intermediate_size": n_ff_exp, "decoder_sparse_step": 1, "mlp_only_layers": []}
    if name == "qwen2moe":
        config["shared_expert_intermediate_size"] = N_FF_SHEXP
    return config
