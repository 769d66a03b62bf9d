"""Dense ERNIE 4.5: Ernie4_5ForCausalLM -> arch `ernie4_5`; rotary pairs are neighbours in the checkpoint, too."""

from __future__ import annotations

from typing import Any

from quantize.families.key_table import BASE, HEADS
from quantize.families.language import Family
from quantize.families.usual import ATTENTION, DENSE, EMBEDDING, OUTPUT_NORM, TIED_OUTPUT
from quantize.families.vocab_rules import ERNIE_VOCAB

MODEL = (EMBEDDING, OUTPUT_NORM, TIED_OUTPUT, *ATTENTION, *DENSE)

# transformers 5.23, models/ernie4_5/configuration_ernie4_5.py and models/ernie4_5_moe/configuration_ernie4_5_moe.py
DEFAULTS: dict[str, Any] = {
    "vocab_size": 103424,
    "hidden_act": "silu",
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": True,
    "use_bias": False,
}

# llama.cpp's graph adds no bias to the output of attention, nor any in the feed-forward.
ACCEPTED: dict[str, tuple[Any, ...]] = {"hidden_act": ("silu", "swish"), "use_bias": (False, None)}

FAMILY = Family(
    architectures=("Ernie4_5ForCausalLM", "Ernie4_5_ForCausalLM"),
    arch="ernie4_5",
    vocab=ERNIE_VOCAB,
    keys=(*BASE, *HEADS),
    tensors=MODEL,
    rope_theta=500000.0,
    defaults=DEFAULTS
    | {
        "model_type": "ernie4_5",
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 18,
        "num_attention_heads": 16,
        "num_key_value_heads": 2,
        "head_dim": 128,
    },
    if_null={
        "num_key_value_heads": "num_attention_heads",
        "head_dim": "hidden_size/num_attention_heads",
    },
    accepted=ACCEPTED,
)
