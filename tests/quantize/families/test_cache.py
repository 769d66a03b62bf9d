"""Bytes of the cache and places of the tensors, as llama.cpp has them."""

from __future__ import annotations

from typing import Any

import pytest

from quantize.families.cache import CacheType, cache_bytes
from quantize.families.placement import placement
from quantize.hparams import Hparams
from quantize.tensors import QType, TensorSpec

MIB = 2**20
USUAL: dict[str, Any] = {
    "n_ctx_train": 4096,
    "n_embd": 128,
    "n_ff": 256,
    "n_head": 4,
    "n_vocab": 1000,
    "rope_freq_base": 10000.0,
}
DELTA = {"ssm_d_conv": 4, "ssm_d_state": 8, "ssm_n_group": 2, "ssm_dt_rank": 4, "full_attention_interval": 4}


def hparams(arch: str, n_layer: int, n_head_kv: int, head_dim: int, **more: Any) -> Hparams:
    return Hparams(arch=arch, n_layer=n_layer, n_head_kv=n_head_kv, head_dim=head_dim, **USUAL, **more)


MODELS = {
    "llama": hparams("llama", 3, 2, 64),
    "gpt-oss": hparams("gpt-oss", 4, 2, 64, n_swa=128),
    "deepseek2": hparams("deepseek2", 3, 1, 288, head_dim_v=256),
    "bailingmoe2": hparams("bailingmoe2", 5, 2, 16, n_layer_nextn=2),
    "qwen3next": hparams("qwen3next", 5, 2, 16, n_layer_nextn=1, extra=DELTA),
    "from before 2025-04": hparams("deepseek2", 3, 4, 96, head_dim_v=64),
}


@pytest.mark.parametrize(
    ("name", "n_ctx", "cache_type", "mib"),
    [
        ("llama", 4096, "f16", 6.0),
        ("llama", 300, "f16", 0.75),  # the context becomes 512
        ("llama", 4096, "q8_0", 6.0 * 34 / 64),
        ("gpt-oss", 4096, "f16", 4.0 + 0.75),  # half of the layers keep 768 tokens
        ("gpt-oss", 65536, "f16", 64.0 + 0.75),
        ("gpt-oss", 300, "f16", 0.5 + 0.5),
        ("deepseek2", 65536, "f16", 108.0),  # latent vectors only
        ("bailingmoe2", 65536, "f16", 24.0),  # three of five layers run
        ("qwen3next", 65536, "f16", 8.0 + 0.0073),  # one layer attends, three have a state
    ],
)
def test_the_cache_is_that_of_llama_cpp(name: str, n_ctx: int, cache_type: CacheType, mib: float) -> None:
    """llama-fit-params prints these for files with such dimensions (llama.cpp of llama-cpp-python 0.3.36)."""
    assert cache_bytes(MODELS[name], n_ctx, cache_type) / MIB == pytest.approx(mib, abs=0.005)


def test_keys_and_values_of_files_without_absorbed_attention_are_both_kept() -> None:
    assert cache_bytes(MODELS["from before 2025-04"], 256) == 3 * 256 * 2 * 4 * (96 + 64)


def test_a_window_counts_only_where_the_graph_has_one() -> None:
    assert cache_bytes(hparams("llama", 3, 2, 64, n_swa=128), 4096) == cache_bytes(MODELS["llama"], 4096)


def test_an_unknown_architecture_keeps_everything_in_each_layer() -> None:
    assert cache_bytes(hparams("unheard-of", 3, 2, 64, n_swa=128), 4096) == 6 * MIB


def spec(name: str, *shape: int) -> TensorSpec:
    return TensorSpec(name, shape, QType.F16)


TENSORS = [
    spec("token_embd.weight", 1000, 128),
    spec("output_norm.weight", 128),
    spec("blk.0.attn_q.weight", 128, 128),
    spec("blk.0.ffn_gate_inp.weight", 4, 128),
    spec("blk.0.ffn_gate_exps.weight", 4, 256, 128),
    spec("blk.0.ffn_down_exps.weight", 4, 128, 512),
    spec("blk.0.ffn_down_exps.bias", 4, 128),
    spec("blk.0.ffn_up_shexp.weight", 256, 128),
    spec("blk.1.ffn_up_exps.weight", 4, 256, 128),
]


def test_experts_and_the_token_embedding_have_their_places() -> None:
    placed = placement(hparams("llama", 2, 2, 64), [*TENSORS, spec("output.weight", 1000, 128)])
    assert placed.ram == 2 * 128 * 1000
    assert placed.experts == 2 * 4 * (2 * 256 * 128 + 128 * 512 + 128)
    assert placed.largest_stack == 2 * 4 * 128 * 512
    assert placed.dense == 2 * (128 + 128 * 128 + 4 * 128 + 256 * 128 + 1000 * 128)


def test_an_embedding_that_is_the_output_is_in_both_places() -> None:
    apart = placement(hparams("llama", 2, 2, 64), [*TENSORS, spec("output.weight", 1000, 128)])
    assert placement(hparams("llama", 2, 2, 64), TENSORS) == apart


def test_layers_for_further_tokens_are_not_loaded() -> None:
    known = hparams("glm4moe", 2, 2, 64, n_layer_nextn=1)
    assert placement(known, TENSORS) == placement(known, TENSORS[:-1])
