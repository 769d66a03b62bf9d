"""Granite's mixture of experts: GraniteMoeForCausalLM and GraniteMoeSharedForCausalLM -> arch `granitemoe`.

Llama's attention, with four factors in the place of the usual scales (conversion/granite.py). Checkpoints keep gate and
up of all experts in one tensor, as the parallel experts of JetMoe do; transformers 5 names it as it names Mixtral's.
A model with a `shared_intermediate_size` has a shared expert, which is stored fused, too.
"""

from __future__ import annotations

from quantize.families.key_table import BASE, EXPERTS, ROUTER, SIZES, known
from quantize.families.keys import Config, unless_zero, whole_number
from quantize.families.language import GATE, UP, Family, fused, moe_layers, tensor
from quantize.families.llama import ATTENTION, ATTENTION_BIASES, COMPUTED, LAYER, MODEL
from quantize.families.vocab_rules import LLAMA_VOCAB

EXPERT_LAYERS = moe_layers(
    LAYER + "block_sparse_moe.",
    tensor("ffn_gate_inp.weight", "n_expert n_embd", "router.layer.weight", "router.weight"),
    tensor(
        "ffn_gate_exps.weight",
        "n_expert n_ff n_embd",
        fused("input_linear.weight", GATE),
        fused("experts.gate_up_proj", GATE),
    ),
    tensor(
        "ffn_up_exps.weight",
        "n_expert n_ff n_embd",
        fused("input_linear.weight", UP),
        fused("experts.gate_up_proj", UP),
    ),
    tensor("ffn_down_exps.weight", "n_expert n_embd n_ff", "output_linear.weight", "experts.down_proj"),
)

SHARED_EXPERT = moe_layers(
    LAYER + "shared_mlp.",
    tensor(
        "ffn_gate_shexp.weight", "n_ff_shexp n_embd", fused("input_linear.weight", GATE), when="n_ff_shexp"
    ),
    tensor("ffn_up_shexp.weight", "n_ff_shexp n_embd", fused("input_linear.weight", UP), when="n_ff_shexp"),
    tensor("ffn_down_shexp.weight", "n_embd n_ff_shexp", "output_linear.weight", when="n_ff_shexp"),
)


def _shared_width(config: Config) -> int | None:
    setting = "shared_intermediate_size"
    return None if config.get(setting) is None else whole_number(config, setting, 0) or None


FAMILY = Family(
    architectures=("GraniteMoeForCausalLM", "GraniteMoeSharedForCausalLM"),
    arch="granitemoe",
    vocab=LLAMA_VOCAB,
    keys=(  # none of the width of a head, which is always n_embd / n_head
        *BASE,
        *EXPERTS,
        *ROUTER,
        *SIZES,
        known("attention.scale", config=unless_zero("attention_multiplier"), optional=True),
        known("embedding_scale", config=unless_zero("embedding_multiplier"), optional=True),
        known("residual_scale", config=unless_zero("residual_multiplier"), optional=True),
        known("logit_scale", config="logits_scaling"),  # without it the loader refuses the file
        known("expert_shared_feed_forward_length", config=_shared_width, optional=True),
    ),
    tensors=MODEL + ATTENTION + ATTENTION_BIASES + EXPERT_LAYERS + SHARED_EXPERT,
    computed=COMPUTED,
    rope_theta=10000.0,
    defaults={  # transformers 5.23, models/granitemoe and granitemoeshared
        "model_type": "granitemoe",
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
        "embedding_multiplier": 1.0,
        "logits_scaling": 1.0,
        "residual_multiplier": 1.0,
        "attention_multiplier": 1.0,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
    },
    if_null={"num_key_value_heads": "num_attention_heads"},
    accepted={"hidden_act": ("silu", "swish")},
)
