"""Dense Mistral: MistralForCausalLM -> arch `llama`; the sliding window is not written, as in llama.cpp."""

from __future__ import annotations

from quantize.families.language import Family
from quantize.families.llama import ATTENTION, COMPUTED, FEED_FORWARD, KEYS, MODEL
from quantize.families.vocab_rules import LLAMA_VOCAB

FAMILY = Family(
    architectures=("MistralForCausalLM",),
    arch="llama",
    keys=KEYS,
    tensors=MODEL + ATTENTION + FEED_FORWARD,
    computed=COMPUTED,
    rope_theta=10000.0,
    vocab=LLAMA_VOCAB,
    defaults={  # transformers 5.23, models/mistral/configuration_mistral.py
        "model_type": "mistral",
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "hidden_act": "silu",
        "max_position_embeddings": 4096 * 32,
        "rms_norm_eps": 1e-6,
        "pad_token_id": None,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "tie_word_embeddings": False,
        "sliding_window": 4096,
    },
    if_null={
        "num_key_value_heads": "num_attention_heads",
        "head_dim": "hidden_size/num_attention_heads",
    },
    accepted={"hidden_act": ("silu", "swish")},
)
