"""Dense Qwen2 and Qwen2.5: Qwen2ForCausalLM -> arch `qwen2`; the sliding window is not written, as in llama.cpp."""

from __future__ import annotations

from quantize.families.graph import Graph
from quantize.families.key_table import BASE, HEADS, ROUTER
from quantize.families.language import Family, each_layer, tensor
from quantize.families.limits import Limit
from quantize.families.llama import FEED_FORWARD, LAYER, MODEL

ATTENTION = each_layer(  # rotary halves stay as Hugging Face has them
    LAYER,
    tensor("attn_norm.weight", "n_embd", "input_layernorm.weight"),
    tensor("attn_q.weight", "n_head*head_dim n_embd", "self_attn.q_proj.weight"),
    tensor("attn_q.bias", "n_head*head_dim", "self_attn.q_proj.bias", optional=True),
    tensor("attn_k.weight", "n_head_kv*head_dim n_embd", "self_attn.k_proj.weight"),
    tensor("attn_k.bias", "n_head_kv*head_dim", "self_attn.k_proj.bias", optional=True),
    tensor("attn_v.weight", "n_head_kv*head_dim n_embd", "self_attn.v_proj.weight"),
    tensor("attn_v.bias", "n_head_kv*head_dim", "self_attn.v_proj.bias", optional=True),
    tensor("attn_output.weight", "n_embd n_head*head_dim", "self_attn.o_proj.weight"),
    tensor("ffn_norm.weight", "n_embd", "post_attention_layernorm.weight"),
)

HEADS_FILL_WIDTH = Limit(
    "head_dim", "hidden_size/num_attention_heads", "divides the width among the heads", is_fatal=True
)
"""src/models/qwen2.cpp, qwen2moe.cpp and olmoe.cpp load queries as a square matrix."""

FAMILY = Family(
    architectures=("Qwen2ForCausalLM",),
    arch="qwen2",
    keys=(*BASE, *ROUTER, *HEADS),
    tensors=MODEL + ATTENTION + FEED_FORWARD,
    rope_neox=True,
    rope_theta=10000.0,
    limits=(HEADS_FILL_WIDTH,),
    graph=Graph(),
    defaults={  # transformers 5.23, models/qwen2/configuration_qwen2.py
        "model_type": "qwen2",
        "vocab_size": 151936,
        "hidden_size": 4096,
        "intermediate_size": 22016,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "hidden_act": "silu",
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": False,
        "use_sliding_window": False,
        "sliding_window": 4096,
    },
    if_null={"num_key_value_heads": "num_attention_heads"},
    accepted={"hidden_act": ("silu", "swish")},
)
