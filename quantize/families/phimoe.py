"""Phi-3.5-MoE: PhiMoEForCausalLM -> arch `phimoe`; transformers 5 saves it as PhimoeForCausalLM, which is the same.

llama.cpp's graph differs from the model's own code. Norms are layer norms; the graph takes the root mean square all
the same, and adds the bias (src/models/phi3.cpp). The router is SparseMixer; the graph takes the softmax of all
experts, and divides the weights of the chosen by their sum. Cosines and sines of long-rope are multiplied by
`short_mscale` or `long_mscale`; a GGUF has a factor that follows from the two lengths of context (conversion/phi.py:
Phi3MiniModel).
"""

from __future__ import annotations

import math
from dataclasses import replace

from quantize.families.key_table import KNOWN, known
from quantize.families.keys import Config, Key, whole_number
from quantize.families.language import GATE, UP, Computed, Family, each_layer, fused, moe_layers, tensor
from quantize.families.llama import LAYER
from quantize.families.rope import long_factors, rope_scaling, short_factors
from quantize.families.vocab_rules import PHI_VOCAB


def _n_ctx_orig(config: Config) -> int:
    """The length of context before it was stretched; a model that never was has only one."""
    scaling, _ = rope_scaling(config["rope_parameters"])
    if scaling.n_ctx_orig:
        return scaling.n_ctx_orig
    outside = "original_max_position_embeddings"
    return whole_number(config, "max_position_embeddings" if config.get(outside) is None else outside, 1)


def _attn_factor(config: Config) -> float | None:
    """sqrt(1 + ln(s) / ln(n_ctx_orig)) where the context is s times as long as it was."""
    if not rope_scaling(config["rope_parameters"])[0].long_factors:
        return None
    n_ctx_orig = _n_ctx_orig(config)
    scale = whole_number(config, "max_position_embeddings", 1) / n_ctx_orig
    return math.sqrt(1 + math.log(scale) / math.log(n_ctx_orig)) if scale > 1 < n_ctx_orig else 1.0


def _n_swa(config: Config) -> int:
    """A window is written, but llama.cpp's graph does not ask for it."""
    return 0 if config.get("sliding_window") is None else whole_number(config, "sliding_window", 0)


MODEL = (
    tensor("token_embd.weight", "n_vocab n_embd", "model.embed_tokens.weight"),
    tensor("output_norm.weight", "n_embd", "model.norm.weight"),
    tensor("output_norm.bias", "n_embd", "model.norm.bias"),
    tensor("output.weight", "n_vocab n_embd", "lm_head.weight"),
    tensor("output.bias", "n_vocab", "lm_head.bias"),
)

ATTENTION = each_layer(
    LAYER,
    tensor("attn_norm.weight", "n_embd", "input_layernorm.weight"),
    tensor("attn_norm.bias", "n_embd", "input_layernorm.bias"),
    tensor("attn_q.weight", "n_head*head_dim n_embd", "self_attn.q_proj.weight"),
    tensor("attn_q.bias", "n_head*head_dim", "self_attn.q_proj.bias", optional=True),
    tensor("attn_k.weight", "n_head_kv*head_dim n_embd", "self_attn.k_proj.weight"),
    tensor("attn_k.bias", "n_head_kv*head_dim", "self_attn.k_proj.bias", optional=True),
    tensor("attn_v.weight", "n_head_kv*head_dim n_embd", "self_attn.v_proj.weight"),
    tensor("attn_v.bias", "n_head_kv*head_dim", "self_attn.v_proj.bias", optional=True),
    tensor("attn_output.weight", "n_embd n_head*head_dim", "self_attn.o_proj.weight"),
    tensor("attn_output.bias", "n_embd", "self_attn.o_proj.bias"),
    tensor("ffn_norm.weight", "n_embd", "post_attention_layernorm.weight"),
    tensor("ffn_norm.bias", "n_embd", "post_attention_layernorm.bias"),
)

EXPERT_LAYERS = moe_layers(
    LAYER,
    tensor("ffn_gate_inp.weight", "n_expert n_embd", "block_sparse_moe.gate.weight", "mlp.router.weight"),
    tensor(
        "ffn_gate_exps.weight",
        "n_expert n_ff n_embd",
        "block_sparse_moe.experts.{xid}.w1.weight",
        fused("mlp.experts.gate_up_proj", GATE),
    ),
    tensor(
        "ffn_up_exps.weight",
        "n_expert n_ff n_embd",
        "block_sparse_moe.experts.{xid}.w3.weight",
        fused("mlp.experts.gate_up_proj", UP),
    ),
    tensor(
        "ffn_down_exps.weight",
        "n_expert n_embd n_ff",
        "block_sparse_moe.experts.{xid}.w2.weight",
        "mlp.experts.down_proj",
    ),
)

FAMILY = Family(
    architectures=("PhiMoEForCausalLM", "PhimoeForCausalLM"),
    arch="phimoe",
    vocab=PHI_VOCAB,
    keys=(
        replace(KNOWN["rope.scaling.attn_factor"], config=_attn_factor, leads=True),
        KNOWN["context_length"],
        known("rope.scaling.original_context_length", config=_n_ctx_orig, optional=True),
        KNOWN["embedding_length"],
        KNOWN["feed_forward_length"],
        KNOWN["block_count"],
        KNOWN["attention.head_count"],
        KNOWN["attention.head_count_kv"],
        KNOWN["attention.layer_norm_rms_epsilon"],
        Key("rope.dimension_count", "n_rot", made="head_dim", optional=True),
        KNOWN["rope.freq_base"],
        known("attention.sliding_window", config=_n_swa, optional=True),
        KNOWN["expert_used_count"],
        KNOWN["expert_count"],
    ),
    tensors=MODEL + ATTENTION + EXPERT_LAYERS,
    computed=(
        Computed("rope_factors_long.weight", long_factors),
        Computed("rope_factors_short.weight", short_factors),
    ),
    rope_theta=1000000.0,
    defaults={  # transformers 5.23, models/phimoe/configuration_phimoe.py
        "model_type": "phimoe",
        "vocab_size": 32064,
        "hidden_size": 4096,
        "intermediate_size": 6400,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "hidden_act": "silu",
        "max_position_embeddings": 4096 * 32,
        "rms_norm_eps": 1e-5,
        "pad_token_id": None,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "tie_word_embeddings": False,
        "sliding_window": None,
        "num_experts_per_tok": 2,
        "num_local_experts": 16,
    },
    if_null={"num_key_value_heads": "num_attention_heads"},
    accepted={"hidden_act": ("silu", "swish")},
    rope_neox=True,
)
