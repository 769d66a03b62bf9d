"""Tiny checkpoints of GPT-OSS, Phi-MoE and Granite's mixtures with random weights, in the layouts that exist.

`usual` is what transformers saves, and people publish; `mxfp4` GPT-OSS as OpenAI publishes it; `fused` what
transformers 5 has in memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pico

Array = pico.Array
Layout = Literal["usual", "fused", "mxfp4"]

ARCHITECTURES = {
    "gpt-oss": "GptOssForCausalLM",
    "phimoe": "PhiMoEForCausalLM",
    "granitemoe": "GraniteMoeForCausalLM",
    "granitemoeshared": "GraniteMoeSharedForCausalLM",
}
MODEL_TYPES = {"gpt-oss": "gpt_oss"}

N_EMBD, N_HEAD, N_HEAD_KV, N_FF, N_FF_SHEXP, N_EXPERT, N_VOCAB = 64, 4, 2, 96, 80, 5, 320
MXFP4 = {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn", "lm_head"]}


def pico_oss(
    path: Path,
    name: str,
    *,
    layout: Layout = "usual",
    n_layer: int = 2,
    n_expert: int = N_EXPERT,
    biases: bool = True,
    tied: bool = False,
    n_shards: int = 1,
    tokenizer: bool = False,
    seed: int = 0,
    **config: Any,
) -> Path:
    """A checkpoint of the family `name`; further keywords go into config.json, None leaves a setting out."""
    weights = random_weights(name, n_layer=n_layer, n_expert=n_expert, biases=biases, seed=seed)
    if tied:
        del weights["lm_head.weight"]
    settings = config_of(name, n_layer=n_layer, n_expert=n_expert, tied=tied)
    stored = pico.as_stored(weights, "BF16")
    if layout == "fused":
        stored = fused(name, stored, n_layer, n_expert)
    if layout == "mxfp4":
        stored = with_mxfp4(stored, seed)
        settings["quantization_config"] = MXFP4
    settings = {key: value for key, value in (settings | config).items() if value is not None}
    pico.write_checkpoint(path, stored, settings, n_shards)
    if tokenizer:
        pico.write_tokenizer(path, N_VOCAB)
    return path


def head_dim(name: str) -> int:
    """GPT-OSS's heads need not divide the width."""
    return 24 if name == "gpt-oss" else N_EMBD // N_HEAD


def random_weights(name: str, *, n_layer: int, n_expert: int, biases: bool, seed: int) -> dict[str, Array]:
    """All tensors as they are usually stored, float32."""
    rng = np.random.default_rng([seed, len(name)])

    def matrix(*shape: int) -> Array:
        return rng.standard_normal(shape, dtype=np.float32) / np.float32(np.sqrt(shape[-1]))

    def vector(n: int) -> Array:
        return rng.standard_normal(n, dtype=np.float32) / np.float32(4)

    def norm(stored: str) -> dict[str, Array]:
        found = {stored + ".weight": 1 + vector(N_EMBD)}
        return found | ({stored + ".bias": vector(N_EMBD)} if name == "phimoe" else {})

    n_q, n_kv = N_HEAD * head_dim(name), N_HEAD_KV * head_dim(name)
    has_biases = biases and name in ("gpt-oss", "phimoe")
    weights = {"model.embed_tokens.weight": rng.standard_normal((N_VOCAB, N_EMBD), dtype=np.float32)}
    for bid in range(n_layer):
        layer = f"model.layers.{bid}."
        shapes = {"q": (n_q, N_EMBD), "k": (n_kv, N_EMBD), "v": (n_kv, N_EMBD), "o": (N_EMBD, n_q)}
        for part, shape in shapes.items():
            weights[f"{layer}self_attn.{part}_proj.weight"] = 2 * matrix(*shape)
            if has_biases:
                weights[f"{layer}self_attn.{part}_proj.bias"] = vector(shape[0])
        if name == "gpt-oss":
            weights[layer + "self_attn.sinks"] = 4 * vector(N_HEAD)
        weights |= norm(layer + "input_layernorm") | norm(layer + "post_attention_layernorm")
        if name == "gpt-oss":
            mlp = layer + "mlp."
            weights[mlp + "router.weight"] = matrix(n_expert, N_EMBD)
            weights[mlp + "router.bias"] = vector(n_expert)
            weights[mlp + "experts.gate_up_proj"] = matrix(n_expert, N_EMBD, 2 * N_FF)
            # some beyond the limit of 7
            weights[mlp + "experts.gate_up_proj_bias"] = 40 * matrix(n_expert, 2 * N_FF)
            weights[mlp + "experts.down_proj"] = matrix(n_expert, N_FF, N_EMBD)
            weights[mlp + "experts.down_proj_bias"] = matrix(n_expert, N_EMBD)
        elif name == "phimoe":
            moe = layer + "block_sparse_moe."
            weights[moe + "gate.weight"] = matrix(n_expert, N_EMBD)
            for xid in range(n_expert):
                weights[f"{moe}experts.{xid}.w1.weight"] = matrix(N_FF, N_EMBD)
                weights[f"{moe}experts.{xid}.w2.weight"] = matrix(N_EMBD, N_FF)
                weights[f"{moe}experts.{xid}.w3.weight"] = matrix(N_FF, N_EMBD)
        else:
            moe = layer + "block_sparse_moe."
            weights[moe + "router.layer.weight"] = matrix(n_expert, N_EMBD)
            weights[moe + "input_linear.weight"] = matrix(n_expert, 2 * N_FF, N_EMBD)
            weights[moe + "output_linear.weight"] = matrix(n_expert, N_EMBD, N_FF)
            if name == "granitemoeshared":
                weights[layer + "shared_mlp.input_linear.weight"] = matrix(2 * N_FF_SHEXP, N_EMBD)
                weights[layer + "shared_mlp.output_linear.weight"] = matrix(N_EMBD, N_FF_SHEXP)
    weights |= norm("model.norm")
    weights["lm_head.weight"] = matrix(N_VOCAB, N_EMBD)
    if name == "phimoe":
        weights["lm_head.bias"] = vector(N_VOCAB)
    return weights


def fused(name: str, stored: Mapping[str, Array], n_layer: int, n_expert: int) -> dict[str, Array]:
    """The same model by the names and in the shapes of transformers 5."""
    found = {}
    for bid in range(n_layer):
        moe = f"model.layers.{bid}.block_sparse_moe."
        if name == "phimoe":
            mlp = f"model.layers.{bid}.mlp."
            w1, w2, w3 = (
                np.stack([stored[f"{moe}experts.{xid}.{one}.weight"] for xid in range(n_expert)])
                for one in ("w1", "w2", "w3")
            )
            found[mlp + "router.weight"] = stored[moe + "gate.weight"]
            found[mlp + "experts.gate_up_proj"] = np.concatenate([w1, w3], axis=1)
            found[mlp + "experts.down_proj"] = w2
        elif name != "gpt-oss":
            found[moe + "router.weight"] = stored[moe + "router.layer.weight"]
            found[moe + "experts.gate_up_proj"] = stored[moe + "input_linear.weight"]
            found[moe + "experts.down_proj"] = stored[moe + "output_linear.weight"]
    return {one: values for one, values in stored.items() if not found or "sparse_moe" not in one} | found


def with_mxfp4(stored: Mapping[str, Array], seed: int) -> dict[str, Array]:
    """GPT-OSS with random MXFP4 in the place of its experts."""
    rng = np.random.default_rng(seed)
    found = {}
    for name, values in stored.items():
        if name.endswith(("experts.gate_up_proj", "experts.down_proj")):
            n_expert, n_in, n_out = values.shape
            shape = (n_expert, n_out, n_in // 32)
            found[name + "_blocks"] = rng.integers(0, 256, (*shape, 16), dtype=np.uint8)
            found[name + "_scales"] = rng.integers(119, 125, shape, dtype=np.uint8)
        else:
            found[name] = values
    return found


def config_of(name: str, *, n_layer: int, n_expert: int, tied: bool) -> dict[str, Any]:
    """config.json as on the Hub."""
    config: dict[str, Any] = {
        "architectures": [ARCHITECTURES[name]],
        "model_type": MODEL_TYPES.get(name, name),
        "hidden_size": N_EMBD,
        "intermediate_size": N_FF,
        "num_hidden_layers": n_layer,
        "num_attention_heads": N_HEAD,
        "num_key_value_heads": N_HEAD_KV,
        "num_local_experts": n_expert,
        "num_experts_per_tok": 2,
        "vocab_size": N_VOCAB,
        "max_position_embeddings": 256,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "bos_token_id": 1,
        "eos_token_id": 2,
        "tie_word_embeddings": tied,
        "torch_dtype": "bfloat16",
    }
    if name == "gpt-oss":
        config |= {"head_dim": head_dim(name), "sliding_window": 8, "swiglu_limit": 7.0}
        config["rope_scaling"] = {
            "rope_type": "yarn",
            "factor": 4.0,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "truncate": True,
            "original_max_position_embeddings": 64,
        }
    elif name == "phimoe":
        config |= {"attention_bias": True, "lm_head_bias": True, "sliding_window": 256}
        config |= {"original_max_position_embeddings": 64, "rope_scaling": longrope()}
    else:
        config |= {"embedding_multiplier": 0.75, "logits_scaling": 0.5}
        config |= {"residual_multiplier": 0.6, "attention_multiplier": 0.4}
    if name == "granitemoeshared":
        config["shared_intermediate_size"] = N_FF_SHEXP
    return config


def longrope() -> dict[str, Any]:
    """The rope scaling of Phi-3.5-MoE for heads of this width."""
    n_pair = N_EMBD // N_HEAD // 2
    return {
        "type": "longrope",
        "short_factor": [1 + i / 8 for i in range(n_pair)],
        "long_factor": [1 + i / 2 for i in range(n_pair)],
        "short_mscale": 1.2,
        "long_mscale": 1.2,
        "original_max_position_embeddings": 64,
    }
