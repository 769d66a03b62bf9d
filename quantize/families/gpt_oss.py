"""OpenAI's GPT-OSS: GptOssForCausalLM -> arch `gpt-oss`.

As published, the experts are MXFP4, which GGUF has, too: the blocks are repacked bit by bit (conversion/gpt_oss.py).
Checkpoints that were tuned or merged hold them in BF16, each matrix turned. Rows of gate and up alternate in both.
"""

from __future__ import annotations

from quantize.families.graph import Graph
from quantize.families.key_table import BASE, EXPERTS, HEADS, ROUTER, known
from quantize.families.language import (
    GATE,
    UP,
    Family,
    each_layer,
    interleaved,
    moe_layers,
    mxfp4,
    tensor,
    transposed,
)
from quantize.families.limits import Limit
from quantize.families.usual import EMBEDDING, LAYER, OUTPUT, OUTPUT_NORM

GATE_UP, DOWN = "experts.gate_up_proj", "experts.down_proj"

ATTENTION = each_layer(
    LAYER,
    tensor("attn_norm.weight", "n_embd", "input_layernorm.weight"),
    tensor("attn_q.weight", "n_head*head_dim n_embd", "self_attn.q_proj.weight"),
    tensor("attn_q.bias", "n_head*head_dim", "self_attn.q_proj.bias", optional=True),
    tensor("attn_k.weight", "n_head_kv*head_dim n_embd", "self_attn.k_proj.weight"),
    tensor("attn_k.bias", "n_head_kv*head_dim", "self_attn.k_proj.bias", optional=True),
    tensor("attn_v.weight", "n_head_kv*head_dim n_embd", "self_attn.v_proj.weight"),
    tensor("attn_v.bias", "n_head_kv*head_dim", "self_attn.v_proj.bias", optional=True),
    tensor("attn_output.weight", "n_embd n_head*head_dim", "self_attn.o_proj.weight"),
    tensor("attn_output.bias", "n_embd", "self_attn.o_proj.bias"),
    tensor("attn_sinks.weight", "n_head", "self_attn.sinks"),
    tensor("post_attention_norm.weight", "n_embd", "post_attention_layernorm.weight"),
)

EXPERT_LAYERS = moe_layers(
    LAYER + "mlp.",
    tensor("ffn_gate_inp.weight", "n_expert n_embd", "router.weight"),
    tensor("ffn_gate_inp.bias", "n_expert", "router.bias"),
    tensor(
        "ffn_gate_exps.weight",
        "n_expert n_ff_exp n_embd",
        mxfp4(interleaved(GATE_UP, GATE)),
        transposed(interleaved(GATE_UP, GATE)),
    ),
    tensor("ffn_gate_exps.bias", "n_expert n_ff_exp", interleaved(GATE_UP + "_bias", GATE, axis=-1)),
    tensor(
        "ffn_up_exps.weight",
        "n_expert n_ff_exp n_embd",
        mxfp4(interleaved(GATE_UP, UP)),
        transposed(interleaved(GATE_UP, UP)),
    ),
    tensor("ffn_up_exps.bias", "n_expert n_ff_exp", interleaved(GATE_UP + "_bias", UP, axis=-1)),
    tensor("ffn_down_exps.weight", "n_expert n_embd n_ff_exp", mxfp4(DOWN), transposed(DOWN)),
    tensor("ffn_down_exps.bias", "n_expert n_embd", DOWN + "_bias"),
)

FAMILY = Family(
    architectures=("GptOssForCausalLM",),
    arch="gpt-oss",
    keys=(
        *BASE,
        *EXPERTS,
        *ROUTER,
        *HEADS,
        known("attention.sliding_window", config="sliding_window"),
        known("expert_feed_forward_length", config="intermediate_size"),
    ),
    tensors=(EMBEDDING, OUTPUT_NORM, OUTPUT, *ATTENTION, *EXPERT_LAYERS),
    aliases={"num_experts": "num_local_experts"},
    rope_theta=150000.0,
    rope_default={
        "rope_type": "yarn",
        "factor": 32.0,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "truncate": False,
        "original_max_position_embeddings": 4096,
    },
    defaults={  # transformers 5.23, models/gpt_oss/configuration_gpt_oss.py
        "model_type": "gpt_oss",
        "vocab_size": 201088,
        "hidden_size": 2880,
        "intermediate_size": 2880,
        "num_hidden_layers": 36,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "hidden_act": "silu",
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "pad_token_id": None,
        "bos_token_id": None,
        "eos_token_id": None,
        "tie_word_embeddings": False,
        "sliding_window": 128,
        "num_local_experts": 128,
        "num_experts_per_tok": 4,
    },
    if_null={
        "num_key_value_heads": "num_attention_heads",
        "head_dim": "hidden_size/num_attention_heads",
    },
    accepted={"hidden_act": ("silu", "swish")},
    limits=(
        Limit("swiglu_limit", (7.0, 7, None), "limits gate and up to 7"),
        Limit("swiglu_alpha", (1.702, None), "multiplies the gate by 1.702 in its sigmoid"),
    ),
    rope_neox=True,
    graph=Graph(
        feed_forward_norm="post_attention_norm",
        window_every=2,
        activation="clamped",
        gating="softmax_weight",
        normalized=False,
    ),
)
