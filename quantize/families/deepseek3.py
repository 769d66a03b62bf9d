"""DeepSeek-V3, -R1 and their kin: DeepseekV3ForCausalLM -> arch `deepseek2`, as DeepSeek-V2.

The router is a sigmoid with a bias for the selection (`exp_probs_b`) where config.json says `scoring_func`; the layer
for further tokens (MTP) is left out, as the converter leaves it out.
"""

from __future__ import annotations

from quantize.families.deepseek2 import GRAPH, KEYS, TENSORS
from quantize.families.language import Family
from quantize.families.llama import LAYER

FAMILY = Family(
    architectures=("DeepseekV3ForCausalLM",),
    arch="deepseek2",
    keys=KEYS,
    tensors=TENSORS,
    n_layer_dense_lead="n_layer_dense_lead",
    ignored_layers=LAYER,
    ignored_when_tied=("lm_head.weight",),
    graph=GRAPH,
    aliases={"num_local_experts": "n_routed_experts"},
    rope_theta=10000.0,
    defaults={  # transformers 5.23, models/deepseek_v3/configuration_deepseek_v3.py
        "model_type": "deepseek_v3",
        "vocab_size": 129280,
        "hidden_size": 7168,
        "intermediate_size": 18432,
        "num_hidden_layers": 61,
        "num_attention_heads": 128,
        "hidden_act": "silu",
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-6,
        "pad_token_id": None,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "tie_word_embeddings": False,
        "first_k_dense_replace": 3,
        "kv_lora_rank": 512,
        "q_lora_rank": 1536,
        "n_group": 8,
        "n_routed_experts": 256,
        "n_shared_experts": 1,
        "num_experts_per_tok": 8,
        "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64,
        "v_head_dim": 128,
        "routed_scaling_factor": 2.5,
        "topk_group": 4,
        "norm_topk_prob": True,
        "rope_interleave": True,
        "moe_intermediate_size": 2048,
    },
    accepted={"hidden_act": ("silu", "swish"), "moe_layer_freq": (1, None), "rope_interleave": (True,)},
)
