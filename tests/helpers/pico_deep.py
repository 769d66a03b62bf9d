"""Tiny checkpoints of DeepSeek-V2, -V3 and GLM-4.5 with random weights, and FP8 copies of any."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pico

Array = pico.Array

D, V, F, FX, E = 32, 48, 20, 12, 4  # width, tokens, dense and expert width, experts
HEADS, Q_LORA, KV_LORA, NOPE, ROT, HV = 4, 14, 10, 6, 4, 5
GLM_HEADS, GLM_KV_HEADS, GLM_HEAD_DIM = 4, 2, 8


MODEL_TYPES = {
    "DeepseekV2ForCausalLM": "deepseek_v2",
    "DeepseekV3ForCausalLM": "deepseek_v3",
    "Glm4MoeLiteForCausalLM": "glm4_moe_lite",
}


def pico_deepseek(
    folder: Path,
    *,
    architecture: str = "DeepseekV3ForCausalLM",
    n_layer: int = 3,
    q_lora_rank: int | None = Q_LORA,
    n_shared: int = 2,
    fused: bool = False,
    n_mtp: int = 0,
    tied: bool = False,
    seed: int = 0,
    **config: Any,
) -> Path:
    """A DeepSeek with one dense layer; `n_mtp` layers more are stored behind the last. Returns the folder."""
    rng = np.random.default_rng(seed)
    weights = _outside(rng, tied)
    is_v3 = architecture != "DeepseekV2ForCausalLM"
    for bid in range(n_layer + n_mtp):
        layer = f"model.layers.{bid}."
        attention = layer + "self_attn."
        if q_lora_rank is None:
            weights[attention + "q_proj.weight"] = _normal(rng, HEADS * (NOPE + ROT), D)
        else:
            weights[attention + "q_a_proj.weight"] = _normal(rng, q_lora_rank, D)
            weights[attention + "q_a_layernorm.weight"] = _norm(rng, q_lora_rank)
            weights[attention + "q_b_proj.weight"] = _normal(rng, HEADS * (NOPE + ROT), q_lora_rank)
        weights[attention + "kv_a_proj_with_mqa.weight"] = _normal(rng, KV_LORA + ROT, D)
        weights[attention + "kv_a_layernorm.weight"] = _norm(rng, KV_LORA)
        weights[attention + "kv_b_proj.weight"] = _normal(rng, HEADS * (NOPE + HV), KV_LORA)
        weights[attention + "o_proj.weight"] = _normal(rng, D, HEADS * HV)
        _feed_forward(weights, rng, layer, is_dense=bid < 1, n_shared=n_shared, fused=fused)
        if is_v3 and bid >= 1:
            weights[layer + "mlp.gate.e_score_correction_bias"] = 0.1 * _normal(rng, E)
        if bid >= n_layer:
            _nextn(weights, rng, layer)
    settings = _config(architecture, n_layer, tied) | {
        "model_type": MODEL_TYPES[architecture],
        "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS,
        "q_lora_rank": q_lora_rank,
        "kv_lora_rank": KV_LORA,
        "qk_nope_head_dim": NOPE,
        "qk_rope_head_dim": ROT,
        "v_head_dim": HV,
        "n_shared_experts": n_shared,
        "n_group": 2 if is_v3 else None,
        "topk_group": 1 if is_v3 else None,
        "topk_method": "noaux_tc" if is_v3 else "greedy",
        "scoring_func": "sigmoid" if is_v3 else "softmax",
        "norm_topk_prob": is_v3,
        "routed_scaling_factor": 2.5 if is_v3 else 1.0,
        "num_nextn_predict_layers": n_mtp,
        "moe_layer_freq": 1,
    }
    pico.write_checkpoint(folder, pico.as_stored(weights, "BF16"), settings | config)
    return folder


def pico_glm(
    folder: Path,
    *,
    n_layer: int = 3,
    qk_norm: bool = True,
    biases: bool = True,
    n_mtp: int = 1,
    stored_mtp: bool = True,
    seed: int = 0,
    **config: Any,
) -> Path:
    """A Glm4MoeForCausalLM with one dense layer, and `n_mtp` layers for further tokens. Returns the folder."""
    rng = np.random.default_rng(seed)
    weights = _outside(rng, tied=False)
    for bid in range(n_layer + (n_mtp if stored_mtp else 0)):
        layer = f"model.layers.{bid}."
        attention = layer + "self_attn."
        sizes = {"q": GLM_HEADS, "k": GLM_KV_HEADS, "v": GLM_KV_HEADS}
        for letter, n_head in sizes.items():
            weights[f"{attention}{letter}_proj.weight"] = _normal(rng, n_head * GLM_HEAD_DIM, D)
            if biases:
                weights[f"{attention}{letter}_proj.bias"] = _normal(rng, n_head * GLM_HEAD_DIM)
            if qk_norm and letter != "v":
                weights[f"{attention}{letter}_norm.weight"] = _norm(rng, GLM_HEAD_DIM)
        weights[attention + "o_proj.weight"] = _normal(rng, D, GLM_HEADS * GLM_HEAD_DIM)
        _feed_forward(weights, rng, layer, is_dense=bid < 1, n_shared=1, fused=False)
        if bid >= 1:
            weights[layer + "mlp.gate.e_score_correction_bias"] = 0.1 * _normal(rng, E)
        if bid >= n_layer:
            _nextn(weights, rng, layer)
    settings = _config("Glm4MoeForCausalLM", n_layer, tied=False) | {
        "model_type": "glm4_moe",
        "num_attention_heads": GLM_HEADS,
        "num_key_value_heads": GLM_KV_HEADS,
        "head_dim": GLM_HEAD_DIM,
        "partial_rotary_factor": 0.5,
        "attention_bias": biases,
        "use_qk_norm": qk_norm,
        "n_shared_experts": 1,
        "n_group": 1,
        "topk_group": 1,
        "norm_topk_prob": True,
        "routed_scaling_factor": 1.5,
        "num_nextn_predict_layers": n_mtp,
    }
    pico.write_checkpoint(folder, pico.as_stored(weights, "BF16"), settings | config)
    return folder


def as_fp8(source: Path, folder: Path, block: tuple[int, int] | None, *, per_row: bool = False) -> Path:
    """A copy whose matrices in layers, but for the routers, are FP8 with scales. Returns the folder.

    `block` are the rows and columns of a scale; None: one scale for each row, or for the whole matrix.
    """
    import torch
    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    for path in source.iterdir():
        if path.suffix != ".safetensors":
            shutil.copy(path, folder)
    tensors: dict[str, torch.Tensor] = {}
    for name, stored in pico.read_checkpoint(source).items():
        values = torch.from_numpy(pico.to_f32(stored))
        if values.dim() != 2 or ".layers." not in name or "gate.weight" in name:
            tensors[name] = values.bfloat16() if stored.dtype == np.uint16 else values
            continue
        n_row, n_col = values.shape
        rows, columns = block or ((1 if per_row else n_row), n_col)
        padded = torch.zeros(-(-n_row // rows) * rows, -(-n_col // columns) * columns)
        padded[:n_row, :n_col] = values
        blocks = padded.view(len(padded) // rows, rows, padded.shape[1] // columns, columns)
        scales = blocks.abs().amax((1, 3)) / 448
        codes = (blocks / scales[:, None, :, None]).reshape(padded.shape)[:n_row, :n_col]
        tensors[name] = codes.contiguous().to(torch.float8_e4m3fn)
        if block is None:
            scales = scales.reshape(-1, 1) if per_row else scales.reshape(())
        tensors[name + "_scale_inv"] = scales.contiguous()
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    for extra in folder.glob("*.index.json"):
        extra.unlink()
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["quantization_config"] = {
        "quant_method": "fp8",
        "fmt": "e4m3",
        "activation_scheme": "dynamic",
        "weight_block_size": None if block is None else list(block),
    }
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def _outside(rng: np.random.Generator, tied: bool) -> dict[str, Array]:
    weights = {
        "model.embed_tokens.weight": rng.standard_normal((V, D), dtype=np.float32),
        "model.norm.weight": _norm(rng, D),
    }
    return weights if tied else weights | {"lm_head.weight": _normal(rng, V, D)}


def _feed_forward(
    weights: dict[str, Array],
    rng: np.random.Generator,
    layer: str,
    *,
    is_dense: bool,
    n_shared: int,
    fused: bool,
) -> None:
    weights[layer + "input_layernorm.weight"] = _norm(rng, D)
    weights[layer + "post_attention_layernorm.weight"] = _norm(rng, D)
    mlp = layer + "mlp."
    if is_dense:
        _gated(weights, rng, mlp, F)
        return
    weights[mlp + "gate.weight"] = _normal(rng, E, D)
    _gated(weights, rng, mlp + "shared_experts.", n_shared * FX)
    if not fused:
        for xid in range(E):
            _gated(weights, rng, f"{mlp}experts.{xid}.", FX)
        return
    weights[mlp + "experts.gate_up_proj"] = _normal(rng, E, 2 * FX, D)
    weights[mlp + "experts.down_proj"] = _normal(rng, E, D, FX)


def _nextn(weights: dict[str, Array], rng: np.random.Generator, layer: str) -> None:
    """What a layer for further tokens has beside the tensors of any layer."""
    weights[layer + "eh_proj.weight"] = _normal(rng, D, 2 * D)
    for name in ("enorm", "hnorm", "shared_head.norm"):
        weights[f"{layer}{name}.weight"] = _norm(rng, D)
    weights[layer + "embed_tokens.weight"] = _normal(rng, V, D)
    weights[layer + "shared_head.head.weight"] = _normal(rng, V, D)


def _gated(weights: dict[str, Array], rng: np.random.Generator, prefix: str, width: int) -> None:
    weights[prefix + "gate_proj.weight"] = _normal(rng, width, D)
    weights[prefix + "up_proj.weight"] = _normal(rng, width, D)
    weights[prefix + "down_proj.weight"] = _normal(rng, D, width)


def _config(architecture: str, n_layer: int, tied: bool) -> dict[str, Any]:
    return {
        "architectures": [architecture],
        "hidden_size": D,
        "intermediate_size": F,
        "moe_intermediate_size": FX,
        "num_hidden_layers": n_layer,
        "n_routed_experts": E,
        "num_experts_per_tok": 2,
        "first_k_dense_replace": 1,
        "vocab_size": V,
        "max_position_embeddings": 256,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "bos_token_id": 1,
        "eos_token_id": 2,
        "tie_word_embeddings": tied,
        "torch_dtype": "bfloat16",
    }


def _norm(rng: np.random.Generator, n: int) -> Array:
    return 1 + _normal(rng, n)


def _normal(rng: np.random.Generator, *shape: int) -> Array:
    values: Array = rng.standard_normal(shape, dtype=np.float32) / np.float32(np.sqrt(shape[-1]))
    return values
