"""Tensors that many families keep under the same names, those that Llama gave them.

Unlike Llama's own, queries and keys are taken as they are stored, either because the rotary halves of a head stay
halves (NEOX) or because the checkpoint has neighbours already.
"""

from __future__ import annotations

from dataclasses import replace

from quantize.families.language import GATE, UP, Tensor, dense_layers, each_layer, fused, moe_layers, tensor
from quantize.families.llama import LAYER, MODEL

__all__ = ["ATTENTION", "DENSE", "EMBEDDING", "LAYER", "OUTPUT", "OUTPUT_NORM", "TIED_OUTPUT", "experts"]

EMBEDDING, OUTPUT_NORM, TIED_OUTPUT = MODEL
OUTPUT = replace(TIED_OUTPUT, optional=False)
"""For graphs that do not take the embedding as the output."""

ATTENTION = each_layer(
    LAYER,
    tensor("attn_norm.weight", "n_embd", "input_layernorm.weight"),
    tensor("attn_q.weight", "n_head*head_dim n_embd", "self_attn.q_proj.weight"),
    tensor("attn_k.weight", "n_head_kv*head_dim n_embd", "self_attn.k_proj.weight"),
    tensor("attn_v.weight", "n_head_kv*head_dim n_embd", "self_attn.v_proj.weight"),
    tensor("attn_output.weight", "n_embd n_head*head_dim", "self_attn.o_proj.weight"),
    tensor("ffn_norm.weight", "n_embd", "post_attention_layernorm.weight"),
)

DENSE = dense_layers(
    LAYER,
    tensor("ffn_gate.weight", "n_ff n_embd", "mlp.gate_proj.weight"),
    tensor("ffn_up.weight", "n_ff n_embd", "mlp.up_proj.weight"),
    tensor("ffn_down.weight", "n_embd n_ff", "mlp.down_proj.weight"),
)
"""The feed-forward of layers without experts."""


def experts(
    shared: str = "",
    n_ff_exp: str = "n_ff_exp",
    n_ff_shexp: str = "n_ff_shexp",
    router: str = "mlp.gate.weight",
    *,
    may_lack: bool = False,
) -> tuple[Tensor, ...]:
    """Router and experts under `mlp.experts`, one by one or, since transformers 5, fused, sometimes with `.weight`.

    Args:
        shared: what the names of the shared experts begin with; empty where there are none.
        n_ff_exp: the width of an expert, an expression.
        n_ff_shexp: the width of the shared experts.
        router: its stored name.
        may_lack: there are models of the family without shared experts.
    """
    when = n_ff_shexp if may_lack else ""
    of_all = (
        tensor("ffn_gate_inp.weight", "n_expert n_embd", router),
        tensor(
            "ffn_gate_exps.weight",
            f"n_expert {n_ff_exp} n_embd",
            "mlp.experts.{xid}.gate_proj.weight",
            fused("mlp.experts.gate_up_proj", GATE),
            fused("mlp.experts.gate_up_proj.weight", GATE),
        ),
        tensor(
            "ffn_up_exps.weight",
            f"n_expert {n_ff_exp} n_embd",
            "mlp.experts.{xid}.up_proj.weight",
            fused("mlp.experts.gate_up_proj", UP),
            fused("mlp.experts.gate_up_proj.weight", UP),
        ),
        tensor(
            "ffn_down_exps.weight",
            f"n_expert n_embd {n_ff_exp}",
            "mlp.experts.{xid}.down_proj.weight",
            "mlp.experts.down_proj",
            "mlp.experts.down_proj.weight",
        ),
    )
    if not shared:
        return moe_layers(LAYER, *of_all)
    return moe_layers(
        LAYER,
        *of_all,
        *(
            tensor(f"ffn_{name}_shexp.weight", shape, f"{shared}.{name}_proj.weight", when=when)
            for name, shape in (
                ("gate", f"{n_ff_shexp} n_embd"),
                ("up", f"{n_ff_shexp} n_embd"),
                ("down", f"n_embd {n_ff_shexp}"),
            )
        ),
    )
