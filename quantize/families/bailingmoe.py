"""Ling-lite and Ling-plus: BailingMoeForCausalLM -> arch `bailingmoe`; queries, keys and values in one stored matrix.

transformers has no class of its own for it: names and settings are those of the model's own code, as llama.cpp's
converter reads them (conversion/bailingmoe.py).
"""

from __future__ import annotations

from quantize.families.graph import Graph
from quantize.families.key_table import BASE, HEADS, ROUTER, known
from quantize.families.keys import Config, Key
from quantize.families.language import Family, Source, each_layer, part, permuted, tensor
from quantize.families.usual import LAYER, OUTPUT, OUTPUT_NORM, experts

QKV_ROWS = "n_head*head_dim+2*n_head_kv*head_dim"

EMBEDDING = tensor("token_embd.weight", "n_vocab n_embd", "model.word_embeddings.weight")

NORMS_AND_OUTPUT = each_layer(
    LAYER,
    tensor("attn_norm.weight", "n_embd", "input_layernorm.weight"),
    tensor("attn_output.weight", "n_embd n_head*head_dim", "attention.dense.weight"),
    tensor("ffn_norm.weight", "n_embd", "post_attention_layernorm.weight"),
)


def _rows(first: str, last: str) -> Source:
    return part("attention.query_key_value.weight", f"{first}:{last}", of=QKV_ROWS)


def _one(config: Config) -> float:
    """The converter says that weights are not scaled."""
    return 1.0


FAMILY = Family(
    architectures=("BailingMoeForCausalLM",),
    arch="bailingmoe",
    keys=(
        *BASE,
        known("expert_count", config="num_experts"),
        known("expert_used_count", config="num_experts_per_tok"),
        *ROUTER,
        *HEADS,
        Key("rope.dimension_count", "n_rot", made="head_dim", optional=True),
        known("leading_dense_block_count", config="first_k_dense_replace"),
        Key("vocab_size", made="n_vocab"),
        known("expert_feed_forward_length", config="moe_intermediate_size"),
        known("expert_weights_scale", config=_one, optional=True),
        known("expert_shared_count", config="num_shared_experts"),
        known("expert_weights_norm", config="norm_topk_prob"),
    ),
    tensors=(
        EMBEDDING,
        OUTPUT_NORM,
        OUTPUT,
        *NORMS_AND_OUTPUT,
        *each_layer(
            LAYER,
            tensor(
                "attn_q.weight", "n_head*head_dim n_embd", permuted(_rows("", "n_head*head_dim"), "n_head")
            ),
            tensor(
                "attn_k.weight",
                "n_head_kv*head_dim n_embd",
                permuted(_rows("n_head*head_dim", "n_head*head_dim+n_head_kv*head_dim"), "n_head_kv"),
            ),
            tensor(
                "attn_v.weight",
                "n_head_kv*head_dim n_embd",
                _rows("n_head*head_dim+n_head_kv*head_dim", ""),
            ),
        ),
        *experts(shared="mlp.shared_experts", n_ff_shexp="n_ff_exp*n_expert_shared"),
    ),
    rope_theta=10000.0,
    defaults={  # of the model's own configuration_bailing_moe.py
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "first_k_dense_replace": 0,
        "norm_head": False,
        "use_bias": False,
        "use_qkv_bias": False,
    },
    if_null={"num_key_value_heads": "num_attention_heads"},
    aliases={"num_local_experts": "num_experts"},
    accepted={
        "hidden_act": ("silu", "swish"),
        # llama.cpp's loader wants experts in every layer.
        "first_k_dense_replace": (0,),
        # A head of unit columns: the converter divides in float32 by sums in torch's own order.
        "norm_head": (False, None),
        "use_bias": (False, None),
        "use_qkv_bias": (False, None),
    },
    graph=Graph(normalized=None, scaled=True),
)
