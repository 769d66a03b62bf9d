"""Qwen3-MoE, and what mergekit-moe makes of dense Qwen3 donors: Qwen3MoeForCausalLM -> arch `qwen3moe`.

As Qwen2-MoE, without a shared expert, with the norms of Qwen3; the output may be the embedding.
"""

from __future__ import annotations

from quantize.families.graph import Graph
from quantize.families.key_table import BASE, EXPERTS, HEADS, ROUTER
from quantize.families.language import Family
from quantize.families.limits import Limit
from quantize.families.llama import MODEL
from quantize.families.qwen2 import ATTENTION
from quantize.families.qwen2moe import EXPERT_LAYERS, EXPERT_WIDTH, EXPERTS_EVERYWHERE
from quantize.families.qwen3 import HEAD_NORMS, NO_OUTPUT_BIAS

FAMILY = Family(
    architectures=("Qwen3MoeForCausalLM",),
    arch="qwen3moe",
    keys=(*BASE, *EXPERTS, *ROUTER, *HEADS, EXPERT_WIDTH),
    tensors=MODEL + ATTENTION + HEAD_NORMS + EXPERT_LAYERS,
    aliases={"num_experts": "num_local_experts"},
    rope_neox=True,
    rope_theta=10000.0,
    limits=(
        NO_OUTPUT_BIAS,
        *EXPERTS_EVERYWHERE,
        Limit("norm_topk_prob", (True,), "divides the weights of the chosen experts by their sum"),
    ),
    graph=Graph(),
    defaults={  # transformers 5.23, models/qwen3_moe/configuration_qwen3_moe.py
        "model_type": "qwen3_moe",
        "vocab_size": 151936,
        "hidden_size": 2048,
        "intermediate_size": 6144,
        "num_hidden_layers": 24,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
        "hidden_act": "silu",
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": False,
        "attention_bias": False,
        "use_sliding_window": False,
        "sliding_window": 4096,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "moe_intermediate_size": 768,
        "num_experts_per_tok": 8,
        "num_local_experts": 128,
        "norm_topk_prob": False,
    },
    if_null={"num_key_value_heads": "num_attention_heads"},
    accepted={"hidden_act": ("silu", "swish")},
)
