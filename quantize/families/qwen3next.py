"""Qwen3-Next: Qwen3NextForCausalLM -> arch `qwen3next`; three of four layers are gated delta nets instead of attention.

Norms are stored without their 1, and the rows of a delta net's input matrix by key heads. The block that predicts
further tokens (`mtp.`) becomes the last layer, which attends (conversion/qwen.py: _QwenMtpMixin).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from gguf import GGUFValueType

from quantize.containers.untrusted import quoted
from quantize.exceptions import CheckpointError
from quantize.families.glm4moe import NEXTN
from quantize.families.graph import Graph
from quantize.families.key_table import BASE, HEADS, ROUTER, known, n_layer_with, unless_none, with_rows
from quantize.families.keys import Config, Key, derived, number, whole_number
from quantize.families.language import (
    Family,
    Tensor,
    attending_layers,
    each_layer,
    minus_exp,
    moe_layers,
    plus_one,
    recurrent_layers,
    regrouped,
    tensor,
)
from quantize.families.nextn import StoredApart
from quantize.families.usual import EMBEDDING, LAYER, OUTPUT_NORM, TIED_OUTPUT, experts
from quantize.hparams import Hparams

USUAL_INTERVAL, USUAL_SHARE = 4, 0.25  # conversion/qwen.py: Qwen3NextModel
VALUES = "ssm_d_state*ssm_dt_rank"  # rows of the values of a delta net
QKVZ = ("ssm_d_state", "ssm_d_state", f"{VALUES}/ssm_n_group", f"{VALUES}/ssm_n_group")


MTP = StoredApart(
    "mtp_num_hidden_layers",
    "mtp.layers.",
    {
        "mtp.fc.": "eh_proj.",
        "mtp.pre_fc_norm_embedding.": "enorm.",
        "mtp.pre_fc_norm_hidden.": "hnorm.",
        "mtp.norm.": "shared_head.norm.",
    },
)


def _interval(config: Config) -> int:
    """Every which layer attends, as the converter writes it.

    transformers forgets the setting where config.json does not also list the types of all layers.
    """
    types: Any = config.get("layer_types")
    stated = config.get("full_attention_interval")
    interval = USUAL_INTERVAL if stated is None else whole_number(config, "full_attention_interval", 1)
    n_layer = whole_number(config, "num_hidden_layers", 1)
    if types is None and interval != USUAL_INTERVAL:
        message = f"full_attention_interval {interval} without layer_types"
        raise CheckpointError("config.json", message, "list the types of all layers in layer_types")
    if types is not None and types != _types(n_layer, interval):
        message = (
            f"layer_types {quoted(types)}: arch qwen3next has attention in every {interval}th layer here"
        )
        raise CheckpointError("config.json", message)
    return interval


def _types(n_layer: int, interval: int) -> list[str]:
    return ["linear_attention" if (bid + 1) % interval else "full_attention" for bid in range(n_layer)]


def _recurrent(hparams: Hparams) -> list[bool]:
    interval = int(hparams.extra["full_attention_interval"])
    n_run = hparams.n_layer_run
    return [bid < n_run and (bid + 1) % interval != 0 for bid in range(hparams.n_layer)]


def _n_rot(config: Config) -> int:
    rope = {"partial_rotary_factor": USUAL_SHARE} | config["rope_parameters"]
    return int(whole_number(config, "head_dim", 2) * number(rope, "partial_rotary_factor"))


def _stored_less_one(norm: Tensor) -> Tensor:
    return replace(norm, sources=tuple(plus_one(source) for source in norm.sources))


FAMILY = Family(
    architectures=("Qwen3NextForCausalLM",),
    arch="qwen3next",
    keys=(
        *with_rows(BASE, known("block_count", config=n_layer_with(MTP.setting))),
        known("expert_count", config="num_experts"),
        known("expert_used_count", config="num_experts_per_tok"),
        *ROUTER,
        *HEADS,
        known("expert_feed_forward_length", config="moe_intermediate_size"),
        known("expert_shared_feed_forward_length", config="shared_expert_intermediate_size"),
        known("nextn_predict_layers", config=unless_none(MTP.setting), optional=True),
        Key("ssm.conv_kernel", "ssm_d_conv", config="linear_conv_kernel_dim"),
        Key("ssm.state_size", "ssm_d_state", config="linear_key_head_dim"),
        Key("ssm.group_count", "ssm_n_group", config="linear_num_key_heads"),
        Key("ssm.time_step_rank", "ssm_dt_rank", config="linear_num_value_heads"),
        Key("ssm.inner_size", config=derived("linear_value_head_dim*linear_num_value_heads")),
        Key("attention.recurrent_layers", type=GGUFValueType.ARRAY, flags=_recurrent),
        Key("full_attention_interval", "full_attention_interval", config=_interval, default=USUAL_INTERVAL),
        Key("rope.dimension_count", "n_rot", config=_n_rot, optional=True),
    ),
    tensors=(
        EMBEDDING,
        _stored_less_one(OUTPUT_NORM),
        TIED_OUTPUT,
        *each_layer(
            LAYER,
            tensor("attn_norm.weight", "n_embd", plus_one("input_layernorm.weight")),
            tensor("post_attention_norm.weight", "n_embd", plus_one("post_attention_layernorm.weight")),
        ),
        *attending_layers(
            LAYER,
            # The rows of a head are its query, then the gate of what it gives.
            tensor("attn_q.weight", "2*n_head*head_dim n_embd", "self_attn.q_proj.weight"),
            tensor("attn_k.weight", "n_head_kv*head_dim n_embd", "self_attn.k_proj.weight"),
            tensor("attn_v.weight", "n_head_kv*head_dim n_embd", "self_attn.v_proj.weight"),
            tensor("attn_output.weight", "n_embd n_head*head_dim", "self_attn.o_proj.weight"),
            tensor("attn_q_norm.weight", "head_dim", plus_one("self_attn.q_norm.weight")),
            tensor("attn_k_norm.weight", "head_dim", plus_one("self_attn.k_norm.weight")),
        ),
        *recurrent_layers(
            LAYER,
            tensor(
                "attn_qkv.weight",
                f"2*ssm_d_state*ssm_n_group+{VALUES} n_embd",
                regrouped("linear_attn.in_proj_qkvz.weight", "ssm_n_group", QKVZ, (0, 1, 2)),
                optional=True,
            ),
            tensor(
                "attn_gate.weight",
                f"{VALUES} n_embd",
                regrouped("linear_attn.in_proj_qkvz.weight", "ssm_n_group", QKVZ, (3,)),
                optional=True,
            ),
            # The converter's first versions left that matrix as it is stored.
            tensor("ssm_in.weight", f"2*ssm_d_state*ssm_n_group+2*{VALUES} n_embd", optional=True),
            tensor(
                "ssm_conv1d.weight",
                f"2*ssm_d_state*ssm_n_group+{VALUES} ssm_d_conv",
                "linear_attn.conv1d.weight",
            ),
            tensor("ssm_dt.bias", "ssm_dt_rank", "linear_attn.dt_bias"),
            tensor("ssm_a", "ssm_dt_rank", minus_exp("linear_attn.A_log")),
            tensor("ssm_ba.weight", "2*ssm_dt_rank n_embd", "linear_attn.in_proj_ba.weight"),
            tensor("ssm_norm.weight", "ssm_d_state", "linear_attn.norm.weight"),
            tensor("ssm_out.weight", f"n_embd {VALUES}", "linear_attn.out_proj.weight"),
        ),
        *experts(shared="mlp.shared_expert"),
        *moe_layers(LAYER, tensor("ffn_gate_inp_shexp.weight", "1 n_embd", "mlp.shared_expert_gate.weight")),
        *(_stored_less_one(one) if one.name.endswith("norm.weight") else one for one in NEXTN),
    ),
    attention_every="full_attention_interval",
    nextn_may_lack=False,
    nextn_apart=MTP,
    rope_theta=10000.0,
    defaults={  # transformers 5.23, models/qwen3_next/configuration_qwen3_next.py
        "model_type": "qwen3_next",
        "vocab_size": 151936,
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "num_hidden_layers": 48,
        "num_attention_heads": 16,
        "num_key_value_heads": 2,
        "hidden_act": "silu",
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": False,
        "attention_bias": False,
        "head_dim": 256,
        "partial_rotary_factor": 0.25,
        "linear_conv_kernel_dim": 4,
        "linear_key_head_dim": 128,
        "linear_value_head_dim": 128,
        "linear_num_key_heads": 16,
        "linear_num_value_heads": 32,
        "decoder_sparse_step": 1,
        "moe_intermediate_size": 512,
        "shared_expert_intermediate_size": 512,
        "num_experts_per_tok": 10,
        "num_experts": 512,
        "norm_topk_prob": True,
        "pad_token_id": None,
        "bos_token_id": None,
        "eos_token_id": None,
    },
    aliases={"num_local_experts": "num_experts"},
    accepted={
        "hidden_act": ("silu", "swish"),
        "attention_bias": (False, None),
        # llama.cpp's loader wants experts in every layer, and its graph divides their weights by the sum.
        "decoder_sparse_step": (1,),
        "mlp_only_layers": ([], None),
        "norm_topk_prob": (True,),
    },
    rope_neox=True,
    graph=Graph(attention="delta", feed_forward_norm="post_attention_norm"),
)
