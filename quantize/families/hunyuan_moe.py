"""Hunyuan-A13B: HunYuanMoEV1ForCausalLM -> arch `hunyuan-moe`; a shared expert, norms behind the rotation.

The settings of its experts are lists with one number for each layer; llama.cpp's converter wants them to be equal.
"""

from __future__ import annotations

from functools import partial

from gguf import GGUFValueType

from quantize.containers.untrusted import quoted
from quantize.exceptions import CheckpointError
from quantize.families.graph import Graph
from quantize.families.key_table import BASE, HEADS, ROUTER, known
from quantize.families.keys import Config, Key, Value, number, whole_number
from quantize.families.language import Family, each_layer, tensor
from quantize.families.usual import ATTENTION, EMBEDDING, LAYER, OUTPUT_NORM, TIED_OUTPUT, experts

N_CTX, ALPHA, THETA, HEAD_DIM = 256 * 1024, 1000, 10000.0, 128
"""What the converter takes for granted where positions are stretched by an alpha (conversion/hunyuan.py)."""


OF_THE_CLASS = {"moe_intermediate_size": "intermediate_size", "num_shared_expert": "1"}
"""The class of transformers lacks these settings: its experts are as wide as a dense layer, and one is shared."""


def _of_all_layers(name: str, config: Config) -> int:
    """A setting that is one number, or a list of one number for each layer."""
    value = config.get(name)
    if value is None and name in OF_THE_CLASS:
        return whole_number({"1": 1, **config}, OF_THE_CLASS[name], 1)
    if not isinstance(value, list):
        return whole_number(config, name, 1)
    if not value or value.count(value[0]) != len(value):
        message = f"{name} {quoted(value)} differs by layer, which arch hunyuan-moe cannot say"
        raise CheckpointError("config.json", message)
    return whole_number({name: value[0]}, name, 1)


def _is_stretched(config: Config) -> bool:
    """Whether positions are stretched by an alpha, which becomes another base of the rotary frequencies.

    Raises:
        CheckpointError: the scaling is of another kind, or its numbers are not those that the converter knows.
    """
    rope = config["rope_parameters"]
    if rope["rope_type"] == "default":
        return False
    told = (
        rope.get("alpha", ALPHA),
        rope["rope_theta"],
        whole_number(config, "hidden_size", 1) // whole_number(config, "num_attention_heads", 1),
    )
    if rope["rope_type"] != "dynamic" or told != (ALPHA, THETA, HEAD_DIM):
        message = f"rope scaling {quoted(rope['rope_type'])} with alpha, theta and head_dim {quoted(told)}"
        supported = f"supported: dynamic with {(ALPHA, THETA, HEAD_DIM)}"
        raise CheckpointError("config.json", f"{message} is not supported", supported)
    return True


def _freq_base(config: Config) -> float:
    if _is_stretched(config):
        stretched: float = THETA * ALPHA ** (HEAD_DIM / (HEAD_DIM - 2))
        return stretched
    return number(config["rope_parameters"], "rope_theta")


def _n_ctx(config: Config) -> int:
    n_ctx = whole_number(config, "max_position_embeddings", 1)
    if not _is_stretched(config):
        return n_ctx
    if n_ctx not in (32 * 1024, N_CTX):
        raise CheckpointError("config.json", f"max_position_embeddings {n_ctx} with rope scaling 'dynamic'")
    return N_CTX


def _if_stretched(value: Value, config: Config) -> Value | None:
    return value if _is_stretched(config) else None


def _scaling(name: str, kind: GGUFValueType, value: Value) -> Key:
    field = {"type": "kind", "original_context_length": "n_ctx_orig"}.get(name, name)
    return Key(
        f"rope.scaling.{name}", f"rope_scaling.{field}", kind, partial(_if_stretched, value), optional=True
    )


CHANGED = {
    row.name: row
    for row in (known("context_length", config=_n_ctx), known("rope.freq_base", config=_freq_base))
}

FAMILY = Family(
    architectures=("HunYuanMoEV1ForCausalLM",),
    arch="hunyuan-moe",
    keys=(
        *(CHANGED.get(row.name, row) for row in BASE if not row.name.startswith("rope.scaling.")),
        known("expert_count", config="num_experts"),
        *ROUTER,
        *HEADS,
        known("expert_shared_feed_forward_length", config="intermediate_size"),
        known("expert_feed_forward_length", config=partial(_of_all_layers, "moe_intermediate_size")),
        known("expert_used_count", config=partial(_of_all_layers, "moe_topk")),
        known("expert_shared_count", config=partial(_of_all_layers, "num_shared_expert")),
        _scaling("type", GGUFValueType.STRING, "none"),
        _scaling("factor", GGUFValueType.FLOAT32, 1.0),
        _scaling("original_context_length", GGUFValueType.UINT32, N_CTX),
    ),
    tensors=(
        EMBEDDING,
        OUTPUT_NORM,
        TIED_OUTPUT,
        *ATTENTION,
        *each_layer(
            LAYER,
            tensor("attn_q_norm.weight", "head_dim", "self_attn.query_layernorm.weight"),
            tensor("attn_k_norm.weight", "head_dim", "self_attn.key_layernorm.weight"),
        ),
        # llama.cpp's loader takes the width of a dense layer for that of an expert.
        *experts(shared="mlp.shared_mlp", n_ff_exp="n_ff", router="mlp.gate.wg.weight"),
    ),
    rope_theta=10000.0,
    defaults={  # transformers 5.23, models/hunyuan_v1_moe/configuration_hunyuan_v1_moe.py
        "model_type": "hunyuan_v1_moe",
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "hidden_act": "silu",
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "tie_word_embeddings": False,
        "attention_bias": False,
        "num_experts": 1,
        "moe_topk": 1,
    },
    if_null={"num_key_value_heads": "num_attention_heads"},
    aliases={"num_local_experts": "num_experts", "num_experts_per_tok": "moe_topk"},
    accepted={"hidden_act": ("silu", "swish"), "attention_bias": (False, None)},
    rope_neox=True,
    graph=Graph(norm_behind_rotation=True),
)
