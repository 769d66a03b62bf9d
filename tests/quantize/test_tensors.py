"""A tensor as GGUF knows it: the meaning of its name and its shape."""

from __future__ import annotations

import pytest

from quantize.tensors import QType, TensorSpec, names_experts


@pytest.mark.parametrize(
    ("name", "has_experts"),
    [
        ("blk.0.ffn_up_exps.weight", True),
        ("blk.0.ffn_gate_up_exps.weight", True),
        ("blk.0.ffn_up_chexps.weight", True),  # chunk experts
        ("blk.0.ffn_up_shexp.weight", False),  # shared by all tokens: no stack
        ("blk.0.attn_k_b.weight", False),  # a stack of heads
    ],
)
def test_stacks_of_experts_are_known_by_name(name: str, has_experts: bool) -> None:
    stack = TensorSpec(name, (4, 8, 32), QType.F32)
    assert names_experts(name) == has_experts == stack.has_experts
    assert stack.label(3) == f"{name}, {'expert' if has_experts else 'matrix'} 3"


def test_biases_of_experts_are_no_stack() -> None:
    bias = TensorSpec("blk.0.ffn_up_exps.bias", (4, 8), QType.F32)
    assert names_experts(bias.name) and not bias.has_experts
