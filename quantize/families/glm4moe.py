"""GLM-4.5, -4.5-Air, -4.6: Glm4MoeForCausalLM -> arch `glm4moe`.

A part of each head is rotated; q and k have biases, and norms in the large model only. The layer for further tokens
(MTP) counts as the last layer, whether it is stored or not (conversion/glm.py: Glm4MoeModel).
"""

from __future__ import annotations

from quantize.containers.untrusted import quoted
from quantize.exceptions import CheckpointError
from quantize.families.deepseek2 import EXPERT_LAYERS
from quantize.families.graph import Graph
from quantize.families.key_table import BASE, EXPERTS, HEADS, ROUTER, known, with_rows
from quantize.families.keys import Config, Key, derived
from quantize.families.language import Family, each_layer, moe_layers, nextn_layers, tensor
from quantize.families.llama import MODEL
from quantize.families.usual import DENSE
from quantize.families.vocab_rules import GLM_VOCAB

LAYER = "model.layers.{bid}."
SIGMOID = 2  # LLAMA_EXPERT_GATING_FUNC_TYPE_SIGMOID


def _n_rot(config: Config) -> int:
    """Dimensions of a head that are rotated."""
    factor = config["rope_parameters"].get("partial_rotary_factor", 0.5)
    if type(factor) not in (int, float) or not 0 < factor <= 1:
        message = f"partial_rotary_factor must be a number up to 1, not {quoted(factor)}"
        raise CheckpointError("config.json", message)
    head_dim = config.get("head_dim")
    if head_dim is None:
        head_dim = derived("hidden_size/num_attention_heads")(config)
    if type(head_dim) is not int:
        raise CheckpointError("config.json", f"head_dim must be a whole number, but is {quoted(head_dim)}")
    return int(head_dim * factor)


KEYS = (
    *with_rows(BASE, known("block_count", config=derived("num_hidden_layers+num_nextn_predict_layers"))),
    known("expert_count", config="n_routed_experts"),
    EXPERTS[1],
    *ROUTER[:2],
    *HEADS,
    Key("rope.dimension_count", "n_rot", config=_n_rot),
    known("expert_feed_forward_length", config="moe_intermediate_size"),
    Key("expert_shared_count", "n_expert_shared", config="n_shared_experts"),
    known("leading_dense_block_count", config="first_k_dense_replace", optional=True),
    known("expert_gating_func", config=derived(str(SIGMOID)), default=SIGMOID),
    known("expert_weights_scale", config="routed_scaling_factor", optional=True),
    known("expert_weights_norm", config="norm_topk_prob", optional=True),
    known("nextn_predict_layers", config="num_nextn_predict_layers", optional=True),
)

ATTENTION = each_layer(
    LAYER,
    tensor("attn_norm.weight", "n_embd", "input_layernorm.weight"),
    tensor("attn_q.weight", "n_head*head_dim n_embd", "self_attn.q_proj.weight"),
    tensor("attn_k.weight", "n_head_kv*head_dim n_embd", "self_attn.k_proj.weight"),
    tensor("attn_v.weight", "n_head_kv*head_dim n_embd", "self_attn.v_proj.weight"),
    tensor("attn_q.bias", "n_head*head_dim", "self_attn.q_proj.bias", optional=True),
    tensor("attn_k.bias", "n_head_kv*head_dim", "self_attn.k_proj.bias", optional=True),
    tensor("attn_v.bias", "n_head_kv*head_dim", "self_attn.v_proj.bias", optional=True),
    tensor("attn_q_norm.weight", "head_dim", "self_attn.q_norm.weight", optional=True),
    tensor("attn_k_norm.weight", "head_dim", "self_attn.k_norm.weight", optional=True),
    tensor("attn_output.weight", "n_embd n_head*head_dim", "self_attn.o_proj.weight"),
    tensor("post_attention_norm.weight", "n_embd", "post_attention_layernorm.weight"),
)

SELECTION_BIAS = moe_layers(LAYER, tensor("exp_probs_b.bias", "n_expert", "mlp.gate.e_score_correction_bias"))

NEXTN = nextn_layers(
    LAYER,
    tensor("nextn.eh_proj.weight", "n_embd n_embd*2", "eh_proj.weight"),
    tensor("nextn.enorm.weight", "n_embd", "enorm.weight"),
    tensor("nextn.hnorm.weight", "n_embd", "hnorm.weight"),
    tensor("nextn.embed_tokens.weight", "n_vocab n_embd", "embed_tokens.weight", optional=True),
    tensor("nextn.shared_head_head.weight", "n_vocab n_embd", "shared_head.head.weight", optional=True),
    tensor("nextn.shared_head_norm.weight", "n_embd", "shared_head.norm.weight", optional=True),
)

FAMILY = Family(
    architectures=("Glm4MoeForCausalLM",),
    arch="glm4moe",
    vocab=GLM_VOCAB,
    keys=KEYS,
    tensors=MODEL + ATTENTION + DENSE + EXPERT_LAYERS + SELECTION_BIAS + NEXTN,
    n_layer_dense_lead="n_layer_dense_lead",
    graph=Graph(feed_forward_norm="post_attention_norm", gating=None, normalized=None, scaled=True),
    rope_neox=True,
    aliases={"num_local_experts": "n_routed_experts", "num_mtp_layers": "num_nextn_predict_layers"},
    rope_theta=10000.0,
    defaults={  # transformers 5.23, models/glm4_moe/configuration_glm4_moe.py
        "model_type": "glm4_moe",
        "vocab_size": 151552,
        "hidden_size": 4096,
        "intermediate_size": 10944,
        "num_hidden_layers": 46,
        "num_attention_heads": 96,
        "num_key_value_heads": 8,
        "hidden_act": "silu",
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "pad_token_id": None,
        "bos_token_id": None,
        "eos_token_id": None,
        "tie_word_embeddings": False,
        "attention_bias": False,
        "moe_intermediate_size": 1408,
        "num_experts_per_tok": 8,
        "n_shared_experts": 1,
        "n_routed_experts": 128,
        "routed_scaling_factor": 1.0,
        "n_group": 1,
        "topk_group": 1,
        "first_k_dense_replace": 1,
        "norm_topk_prob": True,
        "num_nextn_predict_layers": 1,
        "partial_rotary_factor": 0.5,
    },
    if_null={"num_nextn_predict_layers": "0"},
    accepted={"hidden_act": ("silu", "swish")},
)
