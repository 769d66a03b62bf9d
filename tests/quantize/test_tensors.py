"""A tensor as GGUF knows it: the meaning of its name and its shape."""

from __future__ import annotations

import pickle

import ggml
import gguf
import pytest

from quantize.ggml_types import FileType
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


def test_types_are_those_of_the_gguf_library() -> None:
    """As far as its version knows them; its size of Q8_1, which no file has, is not ggml's."""
    for theirs, sizes in gguf.GGML_QUANT_SIZES.items():
        qtype = QType(int(theirs))
        if qtype is QType.Q8_1:
            continue
        assert (qtype.name, qtype.block_size, qtype.type_size) == (theirs.name, *sizes)
    for file_type in gguf.LlamaFileType:
        assert FileType[file_type.name] == int(file_type)


def test_types_are_those_of_ggml() -> None:
    ggml.require()
    for qtype in QType:
        assert ggml.sizes(qtype) == (qtype.name.lower(), qtype.block_size, qtype.type_size)
    assert (QType.Q2_0.block_size, QType.Q2_0.type_size) == (64, 18)


def test_a_type_survives_being_sent_to_another_process() -> None:
    again = pickle.loads(pickle.dumps(QType.Q2_0))
    assert again is QType.Q2_0
    assert again.block_size == 64
