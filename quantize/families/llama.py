"""Dense Llama: LlamaForCausalLM -> arch `llama`."""

from __future__ import annotations

from quantize.families.key_table import BASE, HEADS, ROUTER, SIZES
from quantize.families.language import Computed, Family, each_layer, permuted, tensor
from quantize.families.rope import rope_freqs
from quantize.families.stored_names import BASE_CLASSES
from quantize.families.vocab_rules import LLAMA_VOCAB

LAYER = "model.layers.{bid}."

KEYS = (*BASE, *ROUTER, *HEADS, *SIZES)

MODEL = (
    tensor("token_embd.weight", "n_vocab n_embd", "model.embed_tokens.weight"),
    tensor("output_norm.weight", "n_embd", "model.norm.weight"),
    tensor("output.weight", "n_vocab n_embd", "lm_head.weight", optional=True),  # absent: tied to token_embd
)

ATTENTION = each_layer(
    LAYER,
    tensor("attn_norm.weight", "n_embd", "input_layernorm.weight"),
    tensor("attn_q.weight", "n_head*head_dim n_embd", permuted("self_attn.q_proj.weight", "n_head")),
    tensor("attn_k.weight", "n_head_kv*head_dim n_embd", permuted("self_attn.k_proj.weight", "n_head_kv")),
    tensor("attn_v.weight", "n_head_kv*head_dim n_embd", "self_attn.v_proj.weight"),
    tensor("attn_output.weight", "n_embd n_head*head_dim", "self_attn.o_proj.weight"),
    tensor("ffn_norm.weight", "n_embd", "post_attention_layernorm.weight"),
)

ATTENTION_BIASES = each_layer(
    LAYER,
    tensor("attn_q.bias", "n_head*head_dim", permuted("self_attn.q_proj.bias", "n_head"), optional=True),
    tensor(
        "attn_k.bias", "n_head_kv*head_dim", permuted("self_attn.k_proj.bias", "n_head_kv"), optional=True
    ),
    tensor("attn_v.bias", "n_head_kv*head_dim", "self_attn.v_proj.bias", optional=True),
    tensor("attn_output.bias", "n_embd", "self_attn.o_proj.bias", optional=True),
)

FEED_FORWARD = each_layer(
    LAYER,
    tensor("ffn_gate.weight", "n_ff n_embd", "mlp.gate_proj.weight"),
    tensor("ffn_up.weight", "n_ff n_embd", "mlp.up_proj.weight"),
    tensor("ffn_down.weight", "n_embd n_ff", "mlp.down_proj.weight"),
)

FEED_FORWARD_BIASES = each_layer(
    LAYER,
    tensor("ffn_gate.bias", "n_ff", "mlp.gate_proj.bias", optional=True),
    tensor("ffn_up.bias", "n_ff", "mlp.up_proj.bias", optional=True),
    tensor("ffn_down.bias", "n_embd", "mlp.down_proj.bias", optional=True),
)

COMPUTED = (Computed("rope_freqs.weight", rope_freqs),)

FAMILY = Family(
    architectures=("LlamaForCausalLM", "LLaMAForCausalLM", *BASE_CLASSES),
    arch="llama",
    keys=KEYS,
    tensors=MODEL + ATTENTION + ATTENTION_BIASES + FEED_FORWARD + FEED_FORWARD_BIASES,
    computed=COMPUTED,
    rope_theta=10000.0,
    vocab=LLAMA_VOCAB,
    defaults={  # transformers 5.23, models/llama/configuration_llama.py
        "model_type": "llama",
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "hidden_act": "silu",
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-6,
        "pad_token_id": None,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "tie_word_embeddings": False,
        "attention_bias": False,
        "mlp_bias": False,
    },
    if_null={
        "num_key_value_heads": "num_attention_heads",
        "head_dim": "hidden_size/num_attention_heads",
    },
    accepted={"hidden_act": ("silu", "swish")},
)
