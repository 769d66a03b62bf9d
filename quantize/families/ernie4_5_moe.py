"""ERNIE 4.5 with experts: Ernie4_5_MoeForCausalLM -> arch `ernie4_5-moe`; the first layers are dense."""

from __future__ import annotations

from quantize.exceptions import CheckpointError
from quantize.families.ernie4_5 import ACCEPTED, DEFAULTS, MODEL
from quantize.families.key_table import BASE, HEADS, known
from quantize.families.keys import Config, Key, whole_number
from quantize.families.language import Family, moe_layers, tensor
from quantize.families.usual import LAYER, experts
from quantize.families.vocab_rules import ERNIE_VOCAB


def _shared_width(config: Config) -> int | None:
    """The width of the shared experts together, which llama.cpp derives from the dense layers' (conversion/ernie.py).

    In all published models it comes to the same; where it does not, llama.cpp could not load the file.
    """
    n_shared = whole_number(config, "moe_num_shared_experts", 0)
    if not n_shared:
        return None
    width = n_shared * whole_number(config, "moe_intermediate_size", 1)
    derived = whole_number(config, "intermediate_size", 1) // whole_number(config, "num_key_value_heads", 1)
    if derived != width:
        message = (
            f"the shared experts are {width} wide, llama.cpp takes intermediate_size / num_key_value_heads"
        )
        raise CheckpointError("config.json", f"{message}, {derived}", "llama.cpp cannot run this model")
    return width


FAMILY = Family(
    architectures=("Ernie4_5_MoeForCausalLM",),
    arch="ernie4_5-moe",
    vocab=ERNIE_VOCAB,
    keys=(
        *BASE,
        *HEADS,
        known("expert_count", config="moe_num_experts"),
        known("expert_used_count", config="moe_k"),
        Key("interleave_moe_layer_step", "n_moe_layer_step", config="moe_layer_interval"),
        known("leading_dense_block_count", config="moe_layer_start_index"),
        known("expert_feed_forward_length", config="moe_intermediate_size"),
        known("expert_shared_count", config="moe_num_shared_experts"),
        known("expert_shared_feed_forward_length", config=_shared_width, optional=True),
    ),
    tensors=(
        *MODEL,
        *experts(shared="mlp.shared_experts", may_lack=True),
        *moe_layers(
            LAYER,
            # One row: llama.cpp's converter keeps the axis of the stored tensor.
            tensor(
                "exp_probs_b.bias", "1 n_expert", "mlp.moe_statics.e_score_correction_bias", optional=True
            ),
        ),
    ),
    n_layer_dense_lead="n_layer_dense_lead",
    moe_every="n_moe_layer_step",
    rope_theta=500000.0,
    defaults=DEFAULTS
    | {
        "model_type": "ernie4_5_moe",
        "hidden_size": 2560,
        "intermediate_size": 12288,
        "num_hidden_layers": 28,
        "num_attention_heads": 20,
        "num_key_value_heads": 4,
        "moe_intermediate_size": 1536,
        "moe_k": 6,
        "moe_num_experts": 64,
        "moe_num_shared_experts": 2,
        "moe_layer_start_index": 1,
        "moe_layer_interval": 1,
    },
    if_null={"num_key_value_heads": "num_attention_heads"},
    aliases={"num_experts": "moe_num_experts", "num_experts_per_tok": "moe_k"},
    # llama.cpp's loader wants experts in every layer behind the first ones, whatever the interval.
    accepted=ACCEPTED | {"moe_layer_interval": (1,)},
    left_out=("model.mtp_",),
)
