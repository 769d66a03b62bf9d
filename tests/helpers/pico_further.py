"""Tiny checkpoints of further MoE families, made by hand: the names and settings that their publishers give them.

`CASES` are functions that give the tensors (float32 arrays in the layout with one tensor per expert) and the
config.json of a family; `write` stores them.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from pico import Array, as_stored, write_checkpoint

V, D, H, G, HD = 96, 64, 4, 2, 16  # vocabulary, width, heads, key heads, head_dim
E, F, FX = 4, 48, 32  # experts, width of a dense layer, of an expert
N = 3  # layers

Tensors = dict[str, Array]
Case = tuple[Tensors, dict[str, Any]]

COMMON: dict[str, Any] = {
    "hidden_size": D,
    "num_hidden_layers": N,
    "num_attention_heads": H,
    "num_key_value_heads": G,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "rope_theta": 5e5,
    "hidden_act": "silu",
    "vocab_size": V,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}


class Weights(dict[str, Array]):
    """Random tensors by name: rows of unit length, norms around 1, biases that matter."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self._rng = np.random.default_rng(seed)

    def add(self, name: str, *shape: int) -> None:
        """Draw a tensor."""
        values = self._rng.standard_normal(shape, dtype=np.float32)
        if name.endswith("bias"):
            self[name] = values * np.float32(0.1)
        elif len(shape) == 1:
            self[name] = 1 + values * np.float32(0.1)
        else:
            self[name] = values / np.float32(1 if "embed" in name or "wte" in name else np.sqrt(shape[-1]))

    def feed_forward(self, prefix: str, width: int, names: tuple[str, str, str]) -> None:
        """Gate, up and down."""
        gate, up, down = names
        self.add(f"{prefix}.{gate}.weight", width, D)
        self.add(f"{prefix}.{up}.weight", width, D)
        self.add(f"{prefix}.{down}.weight", D, width)

    def attention(self, layer: str) -> None:
        """The four matrices, and the norms around."""
        self.add(layer + "input_layernorm.weight", D)
        self.add(layer + "post_attention_layernorm.weight", D)
        self.add(layer + "self_attn.q_proj.weight", H * HD, D)
        self.add(layer + "self_attn.k_proj.weight", G * HD, D)
        self.add(layer + "self_attn.v_proj.weight", G * HD, D)
        self.add(layer + "self_attn.o_proj.weight", D, H * HD)

    def ends(self, embedding: str = "model.embed_tokens.weight") -> None:
        """Embedding, last norm and head."""
        self.add(embedding, V, D)
        self.add("model.norm.weight", D)
        self.add("lm_head.weight", V, D)


PROJ = ("gate_proj", "up_proj", "down_proj")


def minimax_m2(seed: int = 0) -> Case:
    """Norms over all heads, half of each head rotated, a sigmoid router with a selection bias."""
    w = Weights(seed)
    w.ends()
    for bid in range(N):
        layer = f"model.layers.{bid}."
        w.attention(layer)
        w.add(layer + "self_attn.q_norm.weight", H * HD)
        w.add(layer + "self_attn.k_norm.weight", G * HD)
        w.add(layer + "block_sparse_moe.gate.weight", E, D)
        w.add(layer + "block_sparse_moe.e_score_correction_bias", E)
        for xid in range(E):
            w.feed_forward(f"{layer}block_sparse_moe.experts.{xid}", F, ("w1", "w3", "w2"))
    config = {
        "architectures": ["MiniMaxM2ForCausalLM"],
        "model_type": "minimax_m2",
        "intermediate_size": F,
        "head_dim": HD,
        "num_local_experts": E,
        "num_experts_per_tok": 2,
        "rotary_dim": HD // 2,
        "scoring_func": "sigmoid",
        "use_qk_norm": True,
    }
    return w, COMMON | config


def ernie4_5(seed: int = 0) -> Case:
    """A dense model, its head tied to the embedding."""
    w = Weights(seed)
    w.ends()
    del w["lm_head.weight"]
    for bid in range(N):
        layer = f"model.layers.{bid}."
        w.attention(layer)
        w.feed_forward(layer + "mlp", F, PROJ)
    config = {
        "architectures": ["Ernie4_5ForCausalLM"],
        "model_type": "ernie4_5",
        "intermediate_size": F,
        "head_dim": HD,
        "use_bias": False,
        "tie_word_embeddings": True,
    }
    return w, COMMON | config


def ernie4_5_moe(seed: int = 0) -> Case:
    """A dense layer, then experts with a softmax, a selection bias and shared experts; tensors of an MTP block."""
    w = Weights(seed)
    w.ends()
    n_ff = FX * 2 * G  # of which the converter derives the width of two shared experts
    for bid in range(N):
        layer = f"model.layers.{bid}."
        w.attention(layer)
        if bid == 0:
            w.feed_forward(layer + "mlp", n_ff, PROJ)
            continue
        w.add(layer + "mlp.gate.weight", E, D)
        w.add(layer + "mlp.moe_statics.e_score_correction_bias", 1, E)
        w.feed_forward(layer + "mlp.shared_experts", 2 * FX, PROJ)
        for xid in range(E):
            w.feed_forward(f"{layer}mlp.experts.{xid}", FX, PROJ)
    w.add("model.mtp_emb_norm.0.weight", D)
    w.add("model.mtp_linear_proj.0.weight", D, 2 * D)
    config = {
        "architectures": ["Ernie4_5_MoeForCausalLM"],
        "model_type": "ernie4_5_moe",
        "intermediate_size": n_ff,
        "moe_intermediate_size": FX,
        "moe_num_experts": E,
        "moe_k": 2,
        "moe_num_shared_experts": 2,
        "moe_layer_start_index": 1,
        "moe_layer_end_index": N - 1,
        "moe_layer_interval": 1,
        "use_bias": False,
    }
    return w, COMMON | config


def hunyuan_moe(seed: int = 0) -> Case:
    """Norms of queries and keys behind the rotation, a shared expert."""
    w = Weights(seed)
    w.ends()
    for bid in range(N):
        layer = f"model.layers.{bid}."
        w.attention(layer)
        w.add(layer + "self_attn.query_layernorm.weight", HD)
        w.add(layer + "self_attn.key_layernorm.weight", HD)
        w.add(layer + "mlp.gate.wg.weight", E, D)
        w.feed_forward(layer + "mlp.shared_mlp", F, PROJ)
        for xid in range(E):
            w.feed_forward(f"{layer}mlp.experts.{xid}", F, PROJ)
    config = {
        "architectures": ["HunYuanMoEV1ForCausalLM"],
        "model_type": "hunyuan_v1_moe",
        "intermediate_size": F,
        "moe_intermediate_size": [F] * N,
        "moe_topk": [2] * N,
        "num_shared_expert": [1] * N,
        "num_experts": E,
        "use_qk_norm": True,
    }
    return w, COMMON | config


def _bailing(w: Weights, *, norms: bool, n_dense: int, shared: int, n_nextn: int = 0) -> None:
    w.ends("model.word_embeddings.weight")
    for bid in range(N + n_nextn):
        layer = f"model.layers.{bid}."
        w.add(layer + "input_layernorm.weight", D)
        w.add(layer + "post_attention_layernorm.weight", D)
        w.add(layer + "attention.query_key_value.weight", (H + 2 * G) * HD, D)
        w.add(layer + "attention.dense.weight", D, H * HD)
        if norms:
            w.add(layer + "attention.query_layernorm.weight", HD)
            w.add(layer + "attention.key_layernorm.weight", HD)
        if bid < n_dense:
            w.feed_forward(layer + "mlp", F, PROJ)
            continue
        w.add(layer + "mlp.gate.weight", E, D)
        w.feed_forward(layer + "mlp.shared_experts", shared, PROJ)
        for xid in range(E):
            w.feed_forward(f"{layer}mlp.experts.{xid}", FX, PROJ)
        if bid >= N:
            w.add(layer + "eh_proj.weight", D, 2 * D)
            for name in ("enorm", "hnorm", "final_layernorm"):
                w.add(f"{layer}{name}.weight", D)


BAILING: dict[str, Any] = {
    "model_type": "bailing_moe",
    "intermediate_size": F,
    "moe_intermediate_size": FX,
    "head_dim": HD,
    "num_experts": E,
    "num_experts_per_tok": 2,
    "norm_topk_prob": True,
    "rope_scaling": None,
    "use_bias": False,
    "use_qkv_bias": False,
}


def bailingmoe(seed: int = 0) -> Case:
    """Queries, keys and values in one matrix, two shared experts."""
    w = Weights(seed)
    _bailing(w, norms=False, n_dense=0, shared=2 * FX)
    config = {
        "architectures": ["BailingMoeForCausalLM"],
        "num_shared_experts": 2,
        "first_k_dense_replace": 0,
        "norm_head": False,
    }
    return w, COMMON | BAILING | config


def bailingmoe2(seed: int = 0, n_nextn: int = 0) -> Case:
    """Groups of experts by a sigmoid, of which half is asked; a dense layer; half of each head rotated."""
    w = Weights(seed)
    _bailing(w, norms=True, n_dense=1, shared=FX, n_nextn=n_nextn)
    for bid in range(1, N + n_nextn):
        w.add(f"model.layers.{bid}.mlp.gate.expert_bias", E)
    config = {
        "architectures": ["BailingMoeV2ForCausalLM"],
        "num_shared_experts": 1,
        "moe_shared_expert_intermediate_size": FX,
        "first_k_dense_replace": 1,
        "n_group": 2,
        "topk_group": 1,
        "routed_scaling_factor": 2.5,
        "score_function": "sigmoid",
        "partial_rotary_factor": 0.5,
        "num_nextn_predict_layers": n_nextn,
        "use_qk_norm": True,
    }
    return w, COMMON | BAILING | config


def dbrx(seed: int = 0) -> Case:
    """Layer norms, a limit for queries, keys and values, all experts of a layer in one matrix."""
    w = Weights(seed)
    w.add("transformer.wte.weight", V, D)
    w.add("transformer.norm_f.weight", D)
    w.add("lm_head.weight", V, D)
    for bid in range(N):
        block = f"transformer.blocks.{bid}."
        w.add(block + "norm_attn_norm.norm_1.weight", D)
        w.add(block + "norm_attn_norm.norm_2.weight", D)
        w.add(block + "norm_attn_norm.attn.Wqkv.weight", (H + 2 * G) * HD, D)
        w.add(block + "norm_attn_norm.attn.out_proj.weight", D, D)
        w.add(block + "ffn.router.layer.weight", E, D)
        for name in ("w1", "v1", "w2"):
            w.add(f"{block}ffn.experts.mlp.{name}", E * F, D)
    config: dict[str, Any] = {
        "architectures": ["DbrxForCausalLM"],
        "model_type": "dbrx",
        "d_model": D,
        "n_heads": H,
        "n_layers": N,
        "max_seq_len": 256,
        "vocab_size": V,
        "attn_config": {"clip_qkv": 1.5, "kv_n_heads": G, "rope_theta": 5e5},
        "ffn_config": {
            "ffn_act_fn": {"name": "silu"},
            "ffn_hidden_size": F,
            "moe_num_experts": E,
            "moe_top_k": 2,
            "moe_normalize_expert_weights": 1.0,
        },
        "tie_word_embeddings": False,
    }
    return w, config


def bailingmoe2_mtp(seed: int = 0) -> Case:
    """Two layers more, which predict further tokens."""
    return bailingmoe2(seed, n_nextn=2)


def qwen3next(seed: int = 0, mtp: bool = False) -> Case:
    """Three gated delta nets and a layer with gated attention; experts, a shared one with a gate."""
    w = Weights(seed)
    w.ends()
    key_heads, value_heads, width = 2, 4, 8
    for layer in [f"model.layers.{bid}." for bid in range(4)] + ["mtp.layers.0."] * mtp:
        w.add(layer + "input_layernorm.weight", D)
        w.add(layer + "post_attention_layernorm.weight", D)
        if layer in ("model.layers.3.", "mtp.layers.0."):
            w.add(layer + "self_attn.q_proj.weight", 2 * H * HD, D)
            w.add(layer + "self_attn.k_proj.weight", G * HD, D)
            w.add(layer + "self_attn.v_proj.weight", G * HD, D)
            w.add(layer + "self_attn.o_proj.weight", D, H * HD)
            w.add(layer + "self_attn.q_norm.weight", HD)
            w.add(layer + "self_attn.k_norm.weight", HD)
        else:
            net = layer + "linear_attn."
            n_values = value_heads * width
            w.add(net + "in_proj_qkvz.weight", 2 * key_heads * width + 2 * n_values, D)
            w.add(net + "in_proj_ba.weight", 2 * value_heads, D)
            w.add(net + "conv1d.weight", 2 * key_heads * width + n_values, 1, 4)
            w.add(net + "dt_bias", value_heads)
            w.add(net + "A_log", value_heads)
            w.add(net + "norm.weight", width)
            w.add(net + "out_proj.weight", D, n_values)
        w.add(layer + "mlp.gate.weight", E, D)
        w.add(layer + "mlp.shared_expert_gate.weight", 1, D)
        w.feed_forward(layer + "mlp.shared_expert", F, PROJ)
        for xid in range(E):
            w.feed_forward(f"{layer}mlp.experts.{xid}", FX, PROJ)
    if mtp:
        w.add("mtp.fc.weight", D, 2 * D)
        for name in ("pre_fc_norm_embedding", "pre_fc_norm_hidden", "norm"):
            w.add(f"mtp.{name}.weight", D)
    config = {
        "architectures": ["Qwen3NextForCausalLM"],
        "model_type": "qwen3_next",
        "num_hidden_layers": 4,
        "intermediate_size": F,
        "moe_intermediate_size": FX,
        "shared_expert_intermediate_size": F,
        "head_dim": HD,
        "num_experts": E,
        "num_experts_per_tok": 2,
        "norm_topk_prob": True,
        "decoder_sparse_step": 1,
        "partial_rotary_factor": 0.25,
        "full_attention_interval": 4,
        "linear_conv_kernel_dim": 4,
        "linear_key_head_dim": width,
        "linear_value_head_dim": width,
        "linear_num_key_heads": key_heads,
        "linear_num_value_heads": value_heads,
    }
    return w, COMMON | config


def qwen3next_mtp(seed: int = 0) -> Case:
    """With a block that predicts further tokens, as it is published."""
    return qwen3next(seed, mtp=True)


CASES: dict[str, Callable[..., Case]] = {
    build.__name__: build
    for build in (
        minimax_m2,
        ernie4_5,
        ernie4_5_moe,
        hunyuan_moe,
        bailingmoe,
        bailingmoe2,
        bailingmoe2_mtp,
        dbrx,
        qwen3next,
        qwen3next_mtp,
    )
}


def write(path: Path, case: Case) -> Path:
    """Store a case in bfloat16; returns the folder."""
    tensors, config = case
    write_checkpoint(path, as_stored(tensors, "BF16"), config)
    return path


def fused_experts(tensors: Tensors) -> Tensors:
    """The layout of transformers 5, with the experts of a layer in two tensors."""
    found = {name: values for name, values in tensors.items() if not re.search(r"\.experts\.\d", name)}
    for name, gate in tensors.items():
        if ".experts.0." not in name or not name.endswith((".gate_proj.weight", ".w1.weight")):
            continue
        before, _, _ = name.partition(".experts.0.")
        stems = PROJ if name.endswith("gate_proj.weight") else ("w1", "w3", "w2")
        n = len(gate)
        stacks = [
            np.stack([tensors[f"{before}.experts.{xid}.{stem}.weight"] for xid in range(E)]) for stem in stems
        ]
        mlp = before.replace("block_sparse_moe", "mlp")
        found[f"{mlp}.experts.gate_up_proj"] = np.concatenate(stacks[:2], axis=1)
        found[f"{mlp}.experts.down_proj"] = stacks[2]
        assert found[f"{mlp}.experts.gate_up_proj"].shape[1] == 2 * n
    return {name.replace("block_sparse_moe", "mlp"): values for name, values in found.items()}
