"""A frankenMoE that mergekit-moe really made, from two tiny Mistral-shaped donors."""

from __future__ import annotations

from pathlib import Path

import llama
import numpy as np
import pico
import pytest
from agreement import check_agreement, export
from merging import merged

from quantize.sources.checkpoint import open_checkpoint
from quantize.tensors import QType

pytestmark = pytest.mark.slow

DONORS = ("first", "second", "first")  # whose feed-forward each expert is; three, which is no power of two
N_LAYER = 2


@pytest.fixture(scope="module")
def donors(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two dense models of one shape with different weights; their tokenizers are the same."""
    folder = tmp_path_factory.mktemp("donors")
    return {
        name: pico.pico_dense(folder / name, n_layer=N_LAYER, n_embd=256, n_ff=512, n_head=8, seed=seed)
        for seed, name in enumerate(("first", "second"), start=1)
    }


@pytest.fixture(scope="module")
def frankenmoe(donors: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that mergekit-moe writes: routers from hidden states of prompts, attention from the first donor."""
    folder = tmp_path_factory.mktemp("frankenmoe")
    prompts = ("the small town", "numbers and names", "a river in winter")
    recipe = {
        "base_model": str(donors["first"]),
        "gate_mode": "hidden",
        "dtype": "bfloat16",
        "experts": [
            {"source_model": str(donors[donor]), "positive_prompts": [prompt]}
            for donor, prompt in zip(DONORS, prompts, strict=True)
        ],
    }
    return merged(folder, recipe)


def test_the_layout_is_one_that_the_family_declares(frankenmoe: Path) -> None:
    """Fused since mergekit's pull request 692 of June 2026, one tensor per expert before."""
    names = set(pico.read_checkpoint(frankenmoe))
    fused = "model.layers.1.mlp.experts.gate_up_proj" in names
    split = "model.layers.1.block_sparse_moe.experts.2.w3.weight" in names
    assert fused != split


def test_experts_are_their_donors(frankenmoe: Path, donors: dict[str, Path]) -> None:
    checkpoint = open_checkpoint(frankenmoe)
    hparams = checkpoint.hparams
    assert (hparams.arch, hparams.n_expert, hparams.n_expert_used, hparams.n_layer) == (
        "llama",
        3,
        2,
        N_LAYER,
    )
    assert (hparams.n_vocab, hparams.head_dim, hparams.rope_freq_base) == (320, 32, 10000.0)
    assert checkpoint.remarks == ()
    dense = {name: pico.read_checkpoint(folder) for name, folder in donors.items()}
    specs = {spec.name: spec for spec in checkpoint.specs()}
    for bid in range(N_LAYER):
        for name in ("gate", "up", "down"):
            spec = specs[f"blk.{bid}.ffn_{name}_exps.weight"]
            assert spec.qtype is QType.BF16
            for xid, donor in enumerate(DONORS):
                expected = dense[donor][f"model.layers.{bid}.mlp.{name}_proj.weight"]
                np.testing.assert_array_equal(checkpoint.read(spec, xid), expected)
        router = checkpoint.read(specs[f"blk.{bid}.ffn_gate_inp.weight"])
        assert router.shape == (3, 256) and len({row.tobytes() for row in router}) == 3


def test_the_rest_is_the_base_model(frankenmoe: Path, donors: dict[str, Path]) -> None:
    merged, base = open_checkpoint(frankenmoe), open_checkpoint(donors["first"])
    parts = ("ffn_gate", "ffn_up", "ffn_down")
    rest = [spec for spec in merged.specs() if not any(part in spec.name for part in parts)]
    assert rest == [spec for spec in base.specs() if not any(part in spec.name for part in parts)]
    assert len(rest) == 3 + 6 * N_LAYER
    for spec in rest:
        np.testing.assert_array_equal(merged.read(spec), base.read(spec))


def test_llama_cpp_answers_as_transformers_does(frankenmoe: Path, tmp_path: Path) -> None:
    check_agreement(frankenmoe, tmp_path)


def test_every_level_loads(frankenmoe: Path, tmp_path: Path) -> None:
    for path in export(frankenmoe, tmp_path, "Q8_0", "Q5_K_M", "Q4_K_M").values():
        with llama.serve(path) as server:
            assert server.complete("the small town", n_predict=4)
