"""Qwen2-MoE, and what mergekit-moe makes of dense Qwen2 donors: Qwen2MoeForCausalLM -> arch `qwen2moe`.

Every layer has experts and a shared expert with a sigmoid gate. Two layouts exist: three stored matrices per expert,
and all experts of a layer stacked under `mlp.experts`, gate and up in one tensor, as transformers 5 holds them,
sometimes with `.weight` after the name.
"""

from __future__ import annotations

from quantize.families.graph import Graph
from quantize.families.key_table import BASE, EXPERTS, HEADS, ROUTER, known, with_rows
from quantize.families.language import Family, moe_layers, tensor
from quantize.families.limits import Limit
from quantize.families.qwen2 import ATTENTION, HEADS_FILL_WIDTH
from quantize.families.usual import EMBEDDING, LAYER, OUTPUT, OUTPUT_NORM, experts

EXPERT_LAYERS = experts()

SHARED_EXPERT = moe_layers(
    LAYER,
    tensor("ffn_gate_inp_shexp.weight", "1 n_embd", "mlp.shared_expert_gate.weight"),
    tensor("ffn_gate_shexp.weight", "n_ff_shexp n_embd", "mlp.shared_expert.gate_proj.weight"),
    tensor("ffn_up_shexp.weight", "n_ff_shexp n_embd", "mlp.shared_expert.up_proj.weight"),
    tensor("ffn_down_shexp.weight", "n_embd n_ff_shexp", "mlp.shared_expert.down_proj.weight"),
)

EXPERT_WIDTH = known(
    "expert_feed_forward_length", config="moe_intermediate_size", default="n_ff/n_expert_used"
)

COUNTED_EXPERTS = with_rows(EXPERTS, known("expert_count", config="num_experts"))

EXPERTS_EVERYWHERE = (
    Limit("mlp_only_layers", ([], None), "has experts in every layer", is_fatal=True),
    Limit("decoder_sparse_step", (1,), "has experts in every layer", is_fatal=True),
)

FAMILY = Family(
    architectures=("Qwen2MoeForCausalLM",),
    arch="qwen2moe",
    keys=(
        *BASE,
        *COUNTED_EXPERTS,
        *ROUTER,
        *HEADS,
        EXPERT_WIDTH,
        known("expert_shared_feed_forward_length", config="shared_expert_intermediate_size", default="n_ff"),
    ),
    tensors=(EMBEDDING, OUTPUT_NORM, OUTPUT, *ATTENTION, *EXPERT_LAYERS, *SHARED_EXPERT),
    aliases={"num_local_experts": "num_experts"},
    rope_neox=True,
    rope_theta=10000.0,
    limits=(
        HEADS_FILL_WIDTH,
        *EXPERTS_EVERYWHERE,
        Limit("norm_topk_prob", (False,), "does not divide the weights of the chosen experts by their sum"),
    ),
    graph=Graph(normalized=False),
    defaults={  # transformers 5.23, models/qwen2_moe/configuration_qwen2_moe.py
        "model_type": "qwen2_moe",
        "vocab_size": 151936,
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "hidden_act": "silu",
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": False,
        "use_sliding_window": False,
        "sliding_window": 4096,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "moe_intermediate_size": 1408,
        "shared_expert_intermediate_size": 5632,
        "num_experts_per_tok": 4,
        "num_experts": 60,
        "norm_topk_prob": False,
    },
    if_null={"num_key_value_heads": "num_attention_heads"},
    accepted={"hidden_act": ("silu", "swish")},
)
