"""OLMoE: OlmoeForCausalLM -> arch `olmoe`; queries and keys are normed over all heads together."""

from __future__ import annotations

from quantize.families.graph import Graph
from quantize.families.key_table import BASE, HEADS, ROUTER, known, with_rows
from quantize.families.keys import Config
from quantize.families.language import Family, each_layer, tensor
from quantize.families.limits import Limit
from quantize.families.llama import LAYER
from quantize.families.qwen2 import ATTENTION, HEADS_FILL_WIDTH
from quantize.families.qwen2moe import COUNTED_EXPERTS, EXPERT_LAYERS
from quantize.families.qwen3 import NO_OUTPUT_BIAS
from quantize.families.usual import EMBEDDING, OUTPUT, OUTPUT_NORM

NORM_EPS = 1e-5  # conversion/olmo.py: OlmoeModel.set_gguf_parameters writes it whatever config.json says

NORMS = each_layer(
    LAYER,
    tensor("attn_q_norm.weight", "n_embd", "self_attn.q_norm.weight"),
    tensor("attn_k_norm.weight", "n_embd", "self_attn.k_norm.weight"),
)


def norm_eps(_config: Config) -> float:
    """Of every OLMoE."""
    return NORM_EPS


FAMILY = Family(
    architectures=("OlmoeForCausalLM",),
    arch="olmoe",
    keys=(
        *with_rows(BASE, known("attention.layer_norm_rms_epsilon", config=norm_eps)),
        *COUNTED_EXPERTS,
        *ROUTER,
        *HEADS,
    ),
    tensors=(EMBEDDING, OUTPUT_NORM, OUTPUT, *ATTENTION, *NORMS, *EXPERT_LAYERS),
    aliases={"num_local_experts": "num_experts"},
    rope_neox=True,
    rope_theta=10000.0,
    limits=(
        HEADS_FILL_WIDTH,
        NO_OUTPUT_BIAS,
        Limit("num_key_value_heads", "num_attention_heads", "has a key head per query head", is_fatal=True),
        Limit("norm_topk_prob", (False,), "does not divide the weights of the chosen experts by their sum"),
        Limit("rms_norm_eps", (NORM_EPS,), f"norms with {NORM_EPS}, as the converter writes it"),
        Limit("clip_qkv", (None,), "does not limit queries, keys and values"),
    ),
    graph=Graph(normalized=False),
    defaults={  # transformers 5.23, models/olmoe/configuration_olmoe.py
        "model_type": "olmoe",
        "vocab_size": 50304,
        "hidden_size": 2048,
        "intermediate_size": 2048,
        "num_hidden_layers": 16,
        "num_attention_heads": 16,
        "hidden_act": "silu",
        "max_position_embeddings": 4096,
        "rms_norm_eps": NORM_EPS,
        "pad_token_id": 1,
        "eos_token_id": 50279,
        "tie_word_embeddings": False,
        "attention_bias": False,
        "clip_qkv": None,
        "num_experts_per_tok": 8,
        "num_experts": 64,
        "norm_topk_prob": False,
    },
    if_null={"num_key_value_heads": "num_attention_heads"},
    accepted={"hidden_act": ("silu", "swish")},
)
