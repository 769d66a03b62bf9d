"""DBRX: DbrxForCausalLM -> arch `dbrx`; layer norms without biases, fused matrices everywhere, and queries, keys and
values that are clamped.
"""

from __future__ import annotations

from quantize.containers.untrusted import quoted
from quantize.exceptions import CheckpointError
from quantize.families.graph import Graph
from quantize.families.key_table import known
from quantize.families.keys import Config, number, setting
from quantize.families.language import Family, each_layer, flat, moe_layers, tensor, transposed

LAYER = "transformer.blocks.{bid}."
EXPERTS = "ffn.experts.mlp."


def _epsilon(config: Config) -> float:
    """PyTorch's own, which the model's code leaves as it is; the converter writes it, too."""
    return 1e-5


def _theta(config: Config) -> float:
    """The converter asks for the attention's own, which may stand beside one of the whole model, and for no scaling."""
    kind = config["rope_parameters"]["rope_type"]
    if kind != "default":
        raise CheckpointError("config.json", f"rope scaling {quoted(kind)} is not supported for arch dbrx")
    is_own = setting(config, "attn_config.rope_theta") is not None
    return number(config["attn_config" if is_own else "rope_parameters"], "rope_theta")


FAMILY = Family(
    architectures=("DbrxForCausalLM",),
    arch="dbrx",
    keys=(
        known("block_count", config="n_layers"),
        known("context_length", config="max_seq_len"),
        known("embedding_length", config="d_model"),
        known("feed_forward_length", config="ffn_config.ffn_hidden_size"),
        known("attention.head_count", config="n_heads"),
        known("attention.head_count_kv", config="attn_config.kv_n_heads"),
        known("rope.freq_base", config=_theta),
        known("attention.clamp_kqv", config="attn_config.clip_qkv"),
        known("expert_count", config="ffn_config.moe_num_experts"),
        known("expert_used_count", config="ffn_config.moe_top_k"),
        known("attention.layer_norm_epsilon", config=_epsilon),
    ),
    tensors=(
        tensor("token_embd.weight", "n_vocab n_embd", "transformer.wte.weight"),
        tensor("output_norm.weight", "n_embd", "transformer.norm_f.weight"),
        tensor("output.weight", "n_vocab n_embd", "lm_head.weight"),
        *each_layer(
            LAYER,
            tensor("attn_norm.weight", "n_embd", "norm_attn_norm.norm_1.weight"),
            tensor(
                "attn_qkv.weight", "n_embd+2*n_head_kv*head_dim n_embd", "norm_attn_norm.attn.Wqkv.weight"
            ),
            tensor("attn_output.weight", "n_embd n_embd", "norm_attn_norm.attn.out_proj.weight"),
            tensor("attn_output_norm.weight", "n_embd", "norm_attn_norm.norm_2.weight"),
        ),
        *moe_layers(
            LAYER,
            tensor("ffn_gate_inp.weight", "n_expert n_embd", "ffn.router.layer.weight"),
            tensor("ffn_gate_exps.weight", "n_expert n_ff n_embd", flat(EXPERTS + "w1")),
            tensor("ffn_up_exps.weight", "n_expert n_ff n_embd", flat(EXPERTS + "v1")),
            tensor("ffn_down_exps.weight", "n_expert n_embd n_ff", transposed(flat(EXPERTS + "w2"))),
        ),
    ),
    rope_theta=10000.0,
    defaults={  # transformers 5.23, models/dbrx/configuration_dbrx.py
        "model_type": "dbrx",
        "d_model": 2048,
        "n_heads": 16,
        "n_layers": 24,
        "max_seq_len": 2048,
        "vocab_size": 32000,
        "pad_token_id": None,
        "bos_token_id": None,
        "eos_token_id": None,
        "tie_word_embeddings": False,
    },
    aliases={
        "attn_config.rope_theta": "rope_theta",
        "hidden_size": "d_model",
        "num_attention_heads": "n_heads",
        "num_hidden_layers": "n_layers",
        "max_position_embeddings": "max_seq_len",
    },
    accepted={
        "ffn_config.ffn_act_fn.name": ("silu", None),
        "ffn_config.moe_normalize_expert_weights": (1, None),
    },
    rope_neox=True,
    graph=Graph(norm="layer", feed_forward_norm="attn_output_norm", attention="fused"),
)
