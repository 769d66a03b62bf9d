"""The baselines of scripts/bench_quality: types by rule, lowered until they take no more bytes than the mixture."""

from __future__ import annotations

import importlib.util
from types import ModuleType

import pytest
from pico import pico_mixtral
from places import SCRIPTS

from quantize.recipes.facts import RecipeFacts
from quantize.recipes.ftypes import ftype
from quantize.recipes.layout import Plan
from quantize.recipes.recipe import Recipe, make_plan
from quantize.sources.checkpoint import Checkpoint, open_checkpoint


@pytest.fixture(scope="module")
def baselines() -> ModuleType:
    spec = importlib.util.spec_from_file_location("quality_baselines", SCRIPTS / "quality_baselines.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    folder = tmp_path_factory.mktemp("models") / "Pico"
    return open_checkpoint(pico_mixtral(folder, n_embd=256, n_ff=512, n_layer=8, tokenizer=False))


def planned(source: Checkpoint, recipe: Recipe) -> Plan:
    return make_plan(source.specs(), RecipeFacts.of(source.hparams), recipe, True)


@pytest.mark.parametrize("level", ["Q4_K_M", "Q5_K_M", "Q3_K_M"])
@pytest.mark.parametrize("rule", ["eight_experts", "active_first"])
def test_baselines_take_the_bytes_of_the_mixture(
    rule: str, level: str, baselines: ModuleType, source: Checkpoint
) -> None:
    recipe = getattr(baselines, rule)(source, ftype(level))
    assert recipe is not None
    made, usual = planned(source, recipe), planned(source, Recipe(ftype(level)))
    assert 0.98 * usual.n_bytes < made.n_bytes <= usual.n_bytes and not made.unmatched
    types = {tensor.name: tensor.qtype.name for tensor in made.tensors}
    before = {tensor.name: tensor.qtype.name for tensor in usual.tensors}
    assert {types[f"blk.{bid}.attn_v.weight"] for bid in range(8)} == {"Q8_0"}
    assert {types[f"blk.{bid}.attn_k.weight"] for bid in range(8)} == {"Q8_0"}
    for name in ("token_embd.weight", "output.weight", "blk.0.ffn_gate_inp.weight"):
        assert types[name] == before[name]


def test_what_never_fits_is_no_recipe(baselines: ModuleType, source: Checkpoint) -> None:
    assert baselines.active_first(source, ftype("Q2_K")) is None
