"""Mixtures of dense Qwen donors that mergekit-moe really made: qwen2moe with a shared expert, and qwen3moe."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import llama
import numpy as np
import pico
import pytest
from agreement import check_agreement, export
from merging import merged
from pico_qwen import N_EMBD, N_FF, pico_qwen

from gguf_export.checking.doctor import doctor
from gguf_export.checking.verify import verify
from quantize.sources.checkpoint import open_checkpoint

pytestmark = pytest.mark.slow

DONORS = (0, 2, 1)  # whose feed-forward each expert is; three, which is no power of two
SHARED = 1
ARCHS = {"qwen2": "qwen2moe", "qwen3": "qwen3moe"}


@pytest.fixture(scope="module")
def donors(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Path]]:
    """Three dense models of each kind, with one tokenizer."""
    folder = tmp_path_factory.mktemp("donors")
    return {
        kind: [pico_qwen(folder / f"{kind}-{seed}", kind, tokenizer=True, seed=seed) for seed in (1, 2, 3)]
        for kind in ARCHS
    }


@pytest.fixture(scope="module", params=ARCHS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def mixture(kind: str, donors: dict[str, list[Path]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Routers from the embeddings of prompts; a shared expert makes mergekit write Qwen2-MoE."""
    prompts = ("the small town", "numbers and names", "a river in winter")
    recipe = {
        "base_model": str(donors[kind][0]),
        "gate_mode": "cheap_embed",
        "dtype": "bfloat16",
        "experts": [
            {"source_model": str(donors[kind][donor]), "positive_prompts": [prompt]}
            for donor, prompt in zip(DONORS, prompts, strict=True)
        ],
    }
    if kind == "qwen2":
        shared = {"source_model": str(donors[kind][SHARED]), "positive_prompts": ["warm day of the year"]}
        recipe["shared_experts"] = [shared]
    model = merged(tmp_path_factory.mktemp("mixture"), recipe)
    for name in ("tokenizer.json", "tokenizer_config.json"):  # of Qwen's class, which the donors' is not
        (model / name).unlink()
    for name in ("tokenizer.model", "tokenizer_config.json"):
        shutil.copy(donors[kind][0] / name, model)
    return model


def test_experts_are_their_donors(mixture: Path, kind: str, donors: dict[str, list[Path]]) -> None:
    checkpoint = open_checkpoint(mixture)
    assert checkpoint.hparams.arch == ARCHS[kind] and checkpoint.hparams.n_expert == 3
    dense = [pico.read_checkpoint(folder) for folder in donors[kind]]
    specs = {spec.name: spec for spec in checkpoint.specs()}
    for bid in range(2):
        for name in ("gate", "up", "down"):
            stored = f"model.layers.{bid}.mlp.{name}_proj.weight"
            spec = specs[f"blk.{bid}.ffn_{name}_exps.weight"]
            for xid, donor in enumerate(DONORS):
                np.testing.assert_array_equal(checkpoint.read(spec, xid), dense[donor][stored])
            if kind == "qwen2":
                shared = checkpoint.read(specs[f"blk.{bid}.ffn_{name}_shexp.weight"])
                np.testing.assert_array_equal(shared, dense[SHARED][stored])
        router = checkpoint.read(specs[f"blk.{bid}.ffn_gate_inp.weight"])
        assert router.shape == (3, N_EMBD) and router.any()
        if kind == "qwen2":
            assert checkpoint.read(specs[f"blk.{bid}.ffn_gate_inp_shexp.weight"]).shape == (1, N_EMBD)
            assert specs[f"blk.{bid}.ffn_up_shexp.weight"].shape == (N_FF, N_EMBD)


def test_what_is_said_of_them(mixture: Path, kind: str, tmp_path: Path) -> None:
    """mergekit asks for weights that add up to one, which llama.cpp's graph of qwen2moe does not do."""
    lost = "norm_topk_prob is True, but llama.cpp's graph of qwen2moe does not divide"
    found = [finding.message for finding in doctor(mixture) if finding.severity != "info"]
    warnings = [message for message in found if "chat template" not in message]
    if kind == "qwen2":
        (said,) = warnings
        assert said.startswith(lost)
    else:
        assert warnings == []
    (file,) = export(mixture, tmp_path, "Q8_0").values()
    assert verify(file, against=mixture).worst in (None, "info")


def test_llama_cpp_answers_as_transformers_does(mixture: Path, kind: str, tmp_path: Path) -> None:
    """Where a setting is lost, as transformers does without it."""
    model = Path(shutil.copytree(mixture, tmp_path / "model"))
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"norm_topk_prob": kind == "qwen3"}))
    check_agreement(model, tmp_path)


def test_a_small_file_loads(mixture: Path, tmp_path: Path) -> None:
    (file,) = export(mixture, tmp_path, "Q4_K_M").values()
    with llama.serve(file) as server:
        assert server.complete("the small town", n_predict=4)
