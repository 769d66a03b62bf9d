"""GLM-4.7-Flash: Glm4MoeLiteForCausalLM -> arch `deepseek2`, with the layer for further tokens of GLM-4.5.

config.json does not name the router's sigmoid, and neither does the file: llama.cpp knows the model by its size
(conversion/glm.py: Glm4MoeLiteModel; src/models/deepseek2.cpp).
"""

from __future__ import annotations

from quantize.families.deepseek2 import GRAPH, KEYS, TENSORS
from quantize.families.glm4moe import NEXTN
from quantize.families.key_table import known, n_layer_with, unless_none, with_rows
from quantize.families.language import Family
from quantize.families.vocab_rules import GLM_VOCAB

LENGTHS = ("attention.key_length", "attention.value_length")
BEHIND = "attention.kv_lora_rank"
"""Behind it these keys stand: transformers' config of this class has no head_dim, which would write them before."""

_moved = [row for row in KEYS if row.name in LENGTHS]
_all = with_rows(KEYS, known("block_count", config=n_layer_with("num_nextn_predict_layers")))
_others = [row for row in _all if row.name not in LENGTHS]
_place = [row.name for row in _others].index(BEHIND) + 1

FAMILY = Family(
    architectures=("Glm4MoeLiteForCausalLM",),
    arch="deepseek2",
    keys=(
        *_others[:_place],
        *_moved,
        *_others[_place:],
        known("nextn_predict_layers", config=unless_none("num_nextn_predict_layers"), optional=True),
    ),
    tensors=TENSORS + NEXTN,
    n_layer_dense_lead="n_layer_dense_lead",
    ignored_when_tied=("lm_head.weight",),
    graph=GRAPH,
    aliases={"num_local_experts": "n_routed_experts"},
    rope_theta=10000.0,
    defaults={  # transformers 5.23, models/glm4_moe_lite/configuration_glm4_moe_lite.py
        "model_type": "glm4_moe_lite",
        "vocab_size": 154880,
        "hidden_size": 2048,
        "intermediate_size": 10240,
        "num_hidden_layers": 47,
        "num_attention_heads": 20,
        "hidden_act": "silu",
        "max_position_embeddings": 202752,
        "rms_norm_eps": 1e-5,
        "pad_token_id": None,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "tie_word_embeddings": False,
        "kv_lora_rank": 512,
        "q_lora_rank": 768,
        "n_group": 1,
        "n_routed_experts": 64,
        "n_shared_experts": 1,
        "num_experts_per_tok": 4,
        "qk_nope_head_dim": 192,
        "qk_rope_head_dim": 64,
        "v_head_dim": 256,
        "routed_scaling_factor": 1.8,
        "topk_group": 1,
        "norm_topk_prob": True,
        "rope_interleave": True,
        "moe_intermediate_size": 1536,
    },
    vocab=GLM_VOCAB,
    accepted={"hidden_act": ("silu", "swish"), "rope_interleave": (True,)},
)
