"""Dense Qwen3: Qwen3ForCausalLM -> arch `qwen3`; Qwen2 with a norm over each head of queries and keys."""

from __future__ import annotations

from quantize.families.graph import Graph
from quantize.families.key_table import BASE, HEADS, ROUTER
from quantize.families.language import Family, each_layer, tensor
from quantize.families.limits import Limit
from quantize.families.llama import FEED_FORWARD, LAYER, MODEL
from quantize.families.qwen2 import ATTENTION

HEAD_NORMS = each_layer(
    LAYER,
    tensor("attn_q_norm.weight", "head_dim", "self_attn.q_norm.weight"),
    tensor("attn_k_norm.weight", "head_dim", "self_attn.k_norm.weight"),
)

NO_OUTPUT_BIAS = Limit("attention_bias", (False, None), "has no bias behind the attention", is_fatal=True)
"""src/models: `attn_output.bias` is not loaded, and the loader refuses tensors that are left over."""

FAMILY = Family(
    architectures=("Qwen3ForCausalLM",),
    arch="qwen3",
    keys=(*BASE, *ROUTER, *HEADS),
    tensors=MODEL + ATTENTION + HEAD_NORMS + FEED_FORWARD,
    rope_neox=True,
    rope_theta=10000.0,
    limits=(NO_OUTPUT_BIAS,),
    graph=Graph(),
    defaults={  # transformers 5.23, models/qwen3/configuration_qwen3.py
        "model_type": "qwen3",
        "vocab_size": 151936,
        "hidden_size": 4096,
        "intermediate_size": 22016,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "head_dim": 128,
        "hidden_act": "silu",
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": False,
        "attention_bias": False,
        "use_sliding_window": False,
        "sliding_window": 4096,
    },
    if_null={"num_key_value_heads": "num_attention_heads"},
    accepted={"hidden_act": ("silu", "swish")},
)
