"""DeepSeek-V2 and -V2-Lite: DeepseekV2ForCausalLM -> arch `deepseek2`, whose attention is latent (MLA).

llama.cpp runs it with the matrices of keys absorbed: `kv_b_proj`, which makes keys and values of all heads from the
latent vector, is stored as `attn_k_b`, transposed, and `attn_v_b`, both a stack of heads, and to the attention there is
one head of keys, as wide as the latent vector and the rotated part (conversion/deepseek.py: DeepseekV2Model).

Rotary pairs are neighbours in the checkpoint already: nothing is permuted.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from gguf import GGUFValueType

from quantize.containers.untrusted import quoted
from quantize.exceptions import CheckpointError
from quantize.families.graph import Graph
from quantize.families.key_table import BASE, EXPERTS, ROUTER, known, with_rows
from quantize.families.keys import Config, Key, derived, whole_number
from quantize.families.language import (
    Family,
    each_layer,
    flat,
    moe_layers,
    part,
    tensor,
    transposed,
)
from quantize.families.limits import Limit
from quantize.families.llama import LAYER, MODEL
from quantize.families.usual import DENSE, experts

LITE_LAYERS = (26, 27)
LITE_LAYERS_AND_VOCAB = (48, 128256)
"""By these llama.cpp takes a model for a Lite one, without a latent vector of queries (src/models/deepseek2.cpp)."""


SOFTMAX, SIGMOID = 1, 2  # llama_expert_gating_func_type
GLM_LAYERS, GLM_VOCAB = (
    (47, 48, 49),
    154880,
)  # a layer for further tokens counts here, and does not in llama.cpp


def _q_lora_rank(config: Config) -> int | None:
    """Width of the latent vector of queries; None where queries are made in one step.

    llama.cpp decides by the number of layers which of the two it loads: what disagrees is refused.
    """
    rank = config.get("q_lora_rank")
    n_layer, n_vocab = config.get("num_hidden_layers"), config.get("vocab_size")
    is_lite = n_layer in LITE_LAYERS or (n_layer, n_vocab) == LITE_LAYERS_AND_VOCAB
    if (rank is None) == is_lite:
        return None if rank is None else whole_number(config, "q_lora_rank", 1)
    message = f"q_lora_rank is {quoted(rank)}, but llama.cpp loads a model of {n_layer} layers "
    raise CheckpointError("config.json", message + ("without one only" if is_lite else "with one only"))


def _normalized(config: Config) -> bool | None:
    """Whether the weights of the experts are divided by their sum: written only where they are."""
    return True if config.get("norm_topk_prob") else None


def _log_multiplier(config: Config) -> float | None:
    """YaRN's `mscale_all_dim`, a tenth of it for reasons of history (TAG_DEEPSEEK2_YARN_LOG_MUL_FIX)."""
    mscale = config["rope_parameters"].get("mscale_all_dim")
    if mscale is None:
        return None
    if type(mscale) not in (int, float) or not 0 <= mscale < 1e6:
        message = f"rope_parameters: mscale_all_dim must be a number, not {quoted(mscale)}"
        raise CheckpointError("config.json", message)
    return float(0.1 * mscale)


def _gating(dims: Mapping[str, Any]) -> int:
    """The router's function where the file does not say it: softmax, but for GLM-4.7-Flash, known by its size."""
    is_glm = dims["n_layer"] in GLM_LAYERS and dims["n_vocab"] == GLM_VOCAB
    return SIGMOID if is_glm else SOFTMAX


F32 = GGUFValueType.FLOAT32

KEYS = (
    *with_rows(BASE, known("attention.head_count_kv", config=derived("1"))),
    known("expert_count", config="n_routed_experts"),
    EXPERTS[1],
    *with_rows(ROUTER, known("expert_gating_func", config=ROUTER[2].config, optional=True, default=_gating)),
    Key("attention.key_length", "head_dim", config=derived("kv_lora_rank+qk_rope_head_dim")),
    Key("attention.value_length", "head_dim_v", config="kv_lora_rank"),
    known("leading_dense_block_count", config="first_k_dense_replace", optional=True),
    Key("vocab_size", made="n_vocab"),
    Key("attention.q_lora_rank", "q_lora_rank", config=_q_lora_rank, default=0),
    Key("attention.kv_lora_rank", "kv_lora_rank", config="kv_lora_rank"),
    Key(
        "attention.key_length_mla",
        "head_dim_mla",
        config=derived("qk_nope_head_dim+qk_rope_head_dim"),
        default="head_dim",
    ),
    Key("attention.value_length_mla", "head_dim_v_mla", config="v_head_dim", default="head_dim_v"),
    known("expert_feed_forward_length", config="moe_intermediate_size"),
    Key("expert_shared_count", "n_expert_shared", config="n_shared_experts"),
    known("expert_weights_scale", config="routed_scaling_factor", optional=True),
    known("expert_weights_norm", config=_normalized, optional=True),
    Key("rope.dimension_count", "n_rot", config="qk_rope_head_dim"),
    Key("rope.scaling.yarn_log_multiplier", "yarn_log_mul", F32, _log_multiplier, optional=True),
)

UNABSORBED = "n_head_kv-1"
"""Of files from before 2025-04, which have `kv_b_proj` as it is and as many heads of keys as of queries."""

_kv_b = partial(flat, "self_attn.kv_b_proj.weight")
KV_B_ROWS = "head_dim_mla-n_rot+head_dim_v_mla"

ATTENTION = each_layer(
    LAYER,
    tensor("attn_norm.weight", "n_embd", "input_layernorm.weight"),
    tensor("attn_q.weight", "n_head*head_dim_mla n_embd", "self_attn.q_proj.weight", when="not q_lora_rank"),
    tensor("attn_q_a.weight", "q_lora_rank n_embd", "self_attn.q_a_proj.weight", when="q_lora_rank"),
    tensor("attn_q_a_norm.weight", "q_lora_rank", "self_attn.q_a_layernorm.weight", when="q_lora_rank"),
    tensor(
        "attn_q_b.weight",
        "n_head*head_dim_mla q_lora_rank",
        "self_attn.q_b_proj.weight",
        when="q_lora_rank",
    ),
    tensor("attn_kv_a_mqa.weight", "kv_lora_rank+n_rot n_embd", "self_attn.kv_a_proj_with_mqa.weight"),
    tensor("attn_kv_a_norm.weight", "kv_lora_rank", "self_attn.kv_a_layernorm.weight"),
    tensor(
        "attn_k_b.weight",
        "n_head kv_lora_rank head_dim_mla-n_rot",
        part(transposed(_kv_b()), ":head_dim_mla-n_rot", of=KV_B_ROWS, axis=-1),
        when=f"not {UNABSORBED}",
    ),
    tensor(
        "attn_v_b.weight",
        "n_head head_dim_v_mla kv_lora_rank",
        part(_kv_b(), "head_dim_mla-n_rot:", of=KV_B_ROWS),
        when=f"not {UNABSORBED}",
    ),
    tensor(
        "attn_kv_b.weight",
        "n_head*head_dim_mla-n_head*n_rot+n_head*head_dim_v_mla kv_lora_rank",
        "self_attn.kv_b_proj.weight",
        when=UNABSORBED,
    ),
    tensor("attn_output.weight", "n_embd n_head*head_dim_v_mla", "self_attn.o_proj.weight"),
    tensor("ffn_norm.weight", "n_embd", "post_attention_layernorm.weight"),
)

EXPERT_LAYERS = experts("mlp.shared_experts", n_ff_shexp="n_ff_exp*n_expert_shared")

SELECTION_BIAS = moe_layers(
    LAYER, tensor("exp_probs_b.bias", "n_expert", "mlp.gate.e_score_correction_bias", optional=True)
)

TENSORS = MODEL + ATTENTION + DENSE + EXPERT_LAYERS + SELECTION_BIAS

GRAPH = Graph(attention="latent", gating=None, normalized=None, scaled=True)

FAMILY = Family(
    architectures=("DeepseekV2ForCausalLM",),
    arch="deepseek2",
    keys=KEYS,
    tensors=TENSORS,
    n_layer_dense_lead="n_layer_dense_lead",
    ignored_layers=LAYER,
    ignored_when_tied=("lm_head.weight",),
    graph=GRAPH,
    aliases={"num_experts": "n_routed_experts"},
    rope_theta=10000.0,
    defaults={  # transformers 5.23, models/deepseek_v2/configuration_deepseek_v2.py
        "model_type": "deepseek_v2",
        "vocab_size": 102400,
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
        "first_k_dense_replace": 0,
        "kv_lora_rank": 512,
        "q_lora_rank": 1536,
        "n_group": None,
        "n_routed_experts": 64,
        "n_shared_experts": 2,
        "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64,
        "v_head_dim": 128,
        "routed_scaling_factor": 1.0,
        "topk_group": None,
        "topk_method": "greedy",
        "norm_topk_prob": False,
        "moe_intermediate_size": 1407,
    },
    accepted={"hidden_act": ("silu", "swish"), "moe_layer_freq": (1, None)},
    limits=(
        Limit(
            "topk_method",
            ("greedy", "noaux_tc", None),
            "judges a group of experts by the sum of its best two (DeepSeek-V3's way)",
        ),
    ),
)
