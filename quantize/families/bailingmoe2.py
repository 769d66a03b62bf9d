"""Ling 2.0 and Ring 2.0: BailingMoeV2ForCausalLM -> arch `bailingmoe2`; norms of queries and keys, a sigmoid router.

Like `bailingmoe`, it has no class in transformers; queries, keys and values stay in one matrix, and only a part of each
head is rotated. Layers that predict further tokens are the last ones, with a norm of what they give.
"""

from __future__ import annotations

from quantize.families.bailingmoe import EMBEDDING, NORMS_AND_OUTPUT
from quantize.families.glm4moe import NEXTN
from quantize.families.graph import Graph
from quantize.families.key_table import BASE, HEADS, ROUTER, known, n_layer_with, with_rows
from quantize.families.keys import Config, Key, number, whole_number
from quantize.families.language import Family, each_layer, moe_layers, nextn_layers, tensor
from quantize.families.usual import DENSE, LAYER, OUTPUT, OUTPUT_NORM, experts

USUAL_SHARE = 0.5
"""Of the dimensions of a head that are rotated (conversion/bailingmoe.py)."""


def _n_rot(config: Config) -> int:
    rope = {"partial_rotary_factor": USUAL_SHARE} | config["rope_parameters"]
    if config.get("head_dim") is not None:
        head_dim = whole_number(config, "head_dim", 2)
    else:
        head_dim = whole_number(config, "hidden_size", 1) // whole_number(config, "num_attention_heads", 1)
    return int(head_dim * number(rope, "partial_rotary_factor"))


def _shared_width(config: Config) -> int:
    """The width of the shared experts together."""
    if config.get("moe_shared_expert_intermediate_size") is not None:
        return whole_number(config, "moe_shared_expert_intermediate_size", 1)
    width = whole_number(config, "moe_intermediate_size", 1)
    return width * whole_number(config, "num_shared_experts", 1)


FAMILY = Family(
    architectures=("BailingMoeV2ForCausalLM",),
    arch="bailingmoe2",
    keys=(
        *with_rows(BASE, known("block_count", config=n_layer_with("num_nextn_predict_layers"))),
        known("expert_count", config="num_experts"),
        known("expert_used_count", config="num_experts_per_tok"),
        *ROUTER,
        *HEADS,
        Key("rope.dimension_count", "n_rot", config=_n_rot, optional=True),
        known("leading_dense_block_count", config="first_k_dense_replace"),
        Key("vocab_size", made="n_vocab"),
        known("expert_feed_forward_length", config="moe_intermediate_size"),
        known("expert_shared_feed_forward_length", config=_shared_width),
        known("expert_weights_scale", config="routed_scaling_factor"),
        known("expert_shared_count", config="num_shared_experts"),
        known("expert_weights_norm", config="norm_topk_prob"),
        known("nextn_predict_layers", config="num_nextn_predict_layers", optional=True),
    ),
    tensors=(
        EMBEDDING,
        OUTPUT_NORM,
        OUTPUT,
        *NORMS_AND_OUTPUT,
        *each_layer(
            LAYER,
            # llama.cpp's loader takes the width of the model for that of all queries.
            tensor(
                "attn_qkv.weight", "n_embd+2*n_head_kv*head_dim n_embd", "attention.query_key_value.weight"
            ),
            tensor("attn_q_norm.weight", "head_dim", "attention.query_layernorm.weight"),
            tensor("attn_k_norm.weight", "head_dim", "attention.key_layernorm.weight"),
        ),
        *DENSE,
        # llama.cpp's loader multiplies the width of the shared experts by their number once more.
        *experts(shared="mlp.shared_experts", n_ff_shexp="n_ff_shexp*n_expert_shared"),
        *moe_layers(LAYER, tensor("exp_probs_b.bias", "n_expert", "mlp.gate.expert_bias", optional=True)),
        *NEXTN,
        *nextn_layers(LAYER, tensor("layer_output_norm.weight", "n_embd", "final_layernorm.weight")),
    ),
    n_layer_dense_lead="n_layer_dense_lead",
    rope_theta=10000.0,
    defaults={  # of the model's own configuration_bailing_moe_v2.py
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "first_k_dense_replace": 0,
        "use_bias": False,
        "use_qkv_bias": False,
    },
    if_null={"num_key_value_heads": "num_attention_heads"},
    aliases={"num_local_experts": "num_experts"},
    accepted={
        "hidden_act": ("silu", "swish"),
        "use_bias": (False, None),
        "use_qkv_bias": (False, None),
    },
    nextn_may_lack=False,
    rope_neox=True,
    graph=Graph(attention="fused", gating=None, normalized=None, scaled=True),
)
