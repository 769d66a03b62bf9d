"""A real llama.cpp loads our files and answers with the probabilities of the checkpoint."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import llama
import numpy as np
import pytest
from agreement import check_agreement, export, reference_probs
from pico import pico_dense, pico_mixtral, read_checkpoint, write_checkpoint

from calibration.forward.run import forward
from calibration.forward.streams import Stream
from quantize.sources.checkpoint import open_checkpoint

N_TOKENS = 200
TEXT_BYTES = 2000  # enough for so many tokens


@pytest.fixture(scope="module", params=["demo_model", pytest.param("bench", marks=pytest.mark.slow)])
def compared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A trained model, a text of its own language, and its files."""
    found = request.getfixturevalue(request.param)
    if request.param == "bench":
        model, text = found / "harmony-nano", found / "texts" / "wiki.txt"
    else:
        model, text = found, found.parent / "demo_texts" / "eval.txt"
    files = export(model, tmp_path_factory.mktemp("files"), "BF16", "Q8_0", "Q5_K_M", "Q4_K_M")
    with text.open(encoding="utf-8") as lines:
        yield model, lines.read(TEXT_BYTES), files


@pytest.mark.slow
def test_probabilities_agree_with_transformers(compared: Any) -> None:
    model, text, files = compared
    with llama.serve(files["BF16"]) as server:
        ids = server.tokenize(text)[:N_TOKENS]
        assert len(ids) == N_TOKENS
        bf16 = server.all_next_token_probs(ids)
    with llama.serve(files["Q8_0"]) as server:
        q8_0 = server.all_next_token_probs(ids)
    expected = reference_probs(model, ids)
    assert np.abs(bf16 - expected).max() < 0.01
    assert np.abs(q8_0 - expected).max() < 0.03


def test_every_level_loads_and_completes(compared: Any) -> None:
    _, text, files = compared
    for path in files.values():
        with llama.serve(path) as server:
            assert server.complete(text[:100], n_predict=8)


@pytest.mark.slow
@pytest.mark.parametrize("n_expert", [2, 3, 6, 16])
def test_any_number_of_experts_loads(tmp_path: Path, n_expert: int) -> None:
    model = pico_mixtral(tmp_path / "Pico", n_expert=n_expert, n_expert_used=min(3, n_expert), n_layer=1)
    assert llama.load_error(export(model, tmp_path, "Q8_0")["Q8_0"]) is None


@pytest.mark.parametrize(
    "shape",
    [
        {"tied": True},
        {"head_dim": 32},
        {"n_vocab": 333},
        {"dtype": "F16"},
        {"layout": "fused"},
        {"n_expert": 1, "n_expert_used": 1},
        {"rope_scaling": {"rope_type": "linear", "factor": 2.0}},
        {
            # An explicit head_dim, for transformers 5.23 stumbles over Mixtral's null when it computes yarn.
            "head_dim": 16,
            "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
        },
    ],
    ids=str,
)
def test_variants_agree_with_transformers(tmp_path: Path, shape: dict[str, Any]) -> None:
    """Random weights with large logits: a wrong permutation or scaling changes everything."""
    model = pico_mixtral(tmp_path / "Pico", **shape)
    check_agreement(model, tmp_path)


@pytest.mark.parametrize("architecture", ["LlamaForCausalLM", "MistralForCausalLM"])
def test_dense_donors_agree_with_transformers(tmp_path: Path, architecture: str) -> None:
    check_agreement(pico_dense(tmp_path / "Pico", architecture=architecture), tmp_path)


def test_llama3_rope_agrees_with_transformers(tmp_path: Path) -> None:
    scaling = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    }
    model = pico_dense(tmp_path / "Pico", architecture="LlamaForCausalLM", rope_scaling=scaling)
    check_agreement(model, tmp_path)


@pytest.mark.parametrize("n_expert", [5, 16, 32])
def test_equal_experts_are_chosen_as_llama_cpp_does(tmp_path: Path, n_expert: int) -> None:
    """Every row of the router is there more than once, as mergekit makes them of equal prompts."""
    model = pico_mixtral(tmp_path / "Pico", n_expert=n_expert, n_expert_used=1, n_vocab=300, n_ff=256)
    stored = read_checkpoint(model)
    for name in stored:
        if name.endswith("block_sparse_moe.gate.weight"):
            stored[name] = stored[name][np.arange(n_expert) % 3]
    for shard in model.glob("model*"):
        shard.unlink()
    write_checkpoint(model, stored, json.loads((model / "config.json").read_text(encoding="utf-8")))
    tokens = np.array([[1, *np.random.default_rng(3).integers(3, 300, 39)]], np.int32)
    found: list[Any] = []
    forward([Stream(open_checkpoint(model))], tokens, on_logits=lambda _, logits: found.append(logits[0]))
    with llama.serve(export(model, tmp_path, "F32")["F32"]) as server:
        probs = server.next_token_probs(tokens[0].tolist())
    assert np.abs(found[0][-1].softmax(-1).numpy() - probs).max() < 0.01
