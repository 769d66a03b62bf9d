"""MiniMax-M2: MiniMaxM2ForCausalLM -> arch `minimax-m2`; experts as Mixtral names them, a sigmoid router with a bias.

Only the first `rotary_dim` dimensions of a head are rotated, and queries and keys are normed over all heads together.
"""

from __future__ import annotations

from quantize.families.graph import Graph
from quantize.families.key_table import BASE, EXPERTS, HEADS, KNOWN, known
from quantize.families.keys import Config, Key, Value, number, whole_number
from quantize.families.language import Family, each_layer, moe_layers, tensor
from quantize.families.mixtral import EXPERT_LAYERS
from quantize.families.usual import ATTENTION, EMBEDDING, LAYER, OUTPUT, OUTPUT_NORM


def _rotary_dim(config: Config) -> int:
    """Dimensions of a head that are rotated: stated, or a share of the head as transformers 5 states it."""
    if config.get("rotary_dim") is not None:
        return whole_number(config, "rotary_dim", 2)
    rope = {"partial_rotary_factor": 1} | config["rope_parameters"]
    return int(whole_number(config, "head_dim", 2) * number(rope, "partial_rotary_factor"))


def _gating(config: Config) -> Value | None:
    """The class of transformers always takes the sigmoid; llama.cpp's graph aborts where the file does not say it."""
    asked = KNOWN["expert_gating_func"].config
    assert callable(asked)
    return asked({"scoring_func": "sigmoid"} | {**config})


FAMILY = Family(
    architectures=("MiniMaxM2ForCausalLM",),
    arch="minimax-m2",
    keys=(
        *BASE,
        *EXPERTS,
        known("expert_gating_func", config=_gating),
        *HEADS,
        known("expert_feed_forward_length", config="intermediate_size"),
        Key("rope.dimension_count", "n_rot", config=_rotary_dim, optional=True),
    ),
    tensors=(
        EMBEDDING,
        OUTPUT_NORM,
        OUTPUT,
        *ATTENTION,
        *each_layer(
            LAYER,
            tensor("attn_q_norm.weight", "n_head*head_dim", "self_attn.q_norm.weight"),
            tensor("attn_k_norm.weight", "n_head_kv*head_dim", "self_attn.k_norm.weight"),
        ),
        *EXPERT_LAYERS,
        *moe_layers(
            LAYER,
            tensor(
                "exp_probs_b.bias",
                "n_expert",
                "block_sparse_moe.e_score_correction_bias",
                "mlp.e_score_correction_bias",
            ),
        ),
    ),
    rope_theta=5000000.0,
    defaults={  # transformers 5.23, models/minimax_m2/configuration_minimax_m2.py
        "model_type": "minimax_m2",
        "vocab_size": 200064,
        "hidden_size": 3072,
        "intermediate_size": 1536,
        "num_hidden_layers": 62,
        "num_attention_heads": 48,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "hidden_act": "silu",
        "max_position_embeddings": 196608,
        "rms_norm_eps": 1e-6,
        "pad_token_id": None,
        "bos_token_id": 200034,
        "eos_token_id": 200020,
        "tie_word_embeddings": False,
        "num_experts_per_tok": 8,
        "num_local_experts": 256,
    },
    aliases={"num_experts": "num_local_experts"},
    accepted={"hidden_act": ("silu", "swish")},
    rope_neox=True,
    graph=Graph(gating=None),
)
