"""Mixtral and the frankenMoEs of mergekit-moe: MixtralForCausalLM -> arch `llama` with experts.

Two layouts exist: one stored matrix per expert under `block_sparse_moe` (w1 gate, w3 up, w2 down), and since 2026 all
experts of a layer stacked under `mlp.experts`, gate and up in one tensor (transformers 5, mergekit 0.1.5), sometimes
with `.weight` after the name.
"""

from __future__ import annotations

from quantize.families.key_table import BASE, EXPERTS, HEADS, ROUTER, SIZES
from quantize.families.language import GATE, UP, Family, fused, moe_layers, tensor
from quantize.families.llama import ATTENTION, COMPUTED, LAYER, MODEL
from quantize.families.vocab_rules import LLAMA_VOCAB

EXPERT_LAYERS = moe_layers(
    LAYER,
    tensor("ffn_gate_inp.weight", "n_expert n_embd", "block_sparse_moe.gate.weight", "mlp.gate.weight"),
    tensor(
        "ffn_gate_exps.weight",
        "n_expert n_ff n_embd",
        "block_sparse_moe.experts.{xid}.w1.weight",
        fused("mlp.experts.gate_up_proj", GATE),
        fused("mlp.experts.gate_up_proj.weight", GATE),
    ),
    tensor(
        "ffn_up_exps.weight",
        "n_expert n_ff n_embd",
        "block_sparse_moe.experts.{xid}.w3.weight",
        fused("mlp.experts.gate_up_proj", UP),
        fused("mlp.experts.gate_up_proj.weight", UP),
    ),
    tensor(
        "ffn_down_exps.weight",
        "n_expert n_embd n_ff",
        "block_sparse_moe.experts.{xid}.w2.weight",
        "mlp.experts.down_proj",
        "mlp.experts.down_proj.weight",
    ),
)

FAMILY = Family(
    architectures=("MixtralForCausalLM",),
    arch="llama",
    keys=(*BASE, *EXPERTS, *ROUTER, *HEADS, *SIZES),
    tensors=MODEL + ATTENTION + EXPERT_LAYERS,
    computed=COMPUTED,
    aliases={"num_experts": "num_local_experts"},
    rope_theta=1000000.0,
    vocab=LLAMA_VOCAB,
    defaults={  # transformers 5.23, models/mixtral/configuration_mixtral.py; head_dim stays null
        "model_type": "mixtral",
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": None,
        "hidden_act": "silu",
        "max_position_embeddings": 4096 * 32,
        "rms_norm_eps": 1e-5,
        "pad_token_id": None,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "tie_word_embeddings": False,
        "sliding_window": None,
        "num_experts_per_tok": 2,
        "num_local_experts": 8,
        "router_jitter_noise": 0.0,
    },
    if_null={"num_key_value_heads": "num_attention_heads"},
    accepted={"hidden_act": ("silu", "swish")},
)
