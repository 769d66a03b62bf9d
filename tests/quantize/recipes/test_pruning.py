"""Layers that are left out, and the file types of copies."""

from __future__ import annotations

import pytest

from quantize.exceptions import RecipeError
from quantize.recipes.copying import converted_file_type, guessed_file_type
from quantize.recipes.facts import RecipeFacts
from quantize.recipes.ftypes import COPY, ftype
from quantize.recipes.pruning import parse_layers, renumbered
from quantize.recipes.recipe import Recipe, make_plan
from quantize.tensors import QType, TensorSpec


@pytest.mark.parametrize(
    ("text", "layers"),
    [("3", (3,)), ("3,1", (1, 3)), ("2, 2,+0", (0, 2)), ("007", (7,)), ("999999999", (999999999,))],
)
def test_layers_as_they_are_spelled(text: str, layers: tuple[int, ...]) -> None:
    assert parse_layers(text) == layers


@pytest.mark.parametrize("text", ["", ",", "1,", "-1", "5-7", "x", "1;2", "1" * 12, "\u0663"])
def test_what_is_no_layer_is_refused(text: str) -> None:
    """llama-quantize takes 5 of 5-7, in silence."""
    with pytest.raises(RecipeError, match="is no layer"):
        parse_layers(text)


def layers(*bids: int, prefix: str = "") -> list[str]:
    return [f"{prefix}blk.{bid}.x.weight" for bid in bids]


@pytest.mark.parametrize(
    ("prune", "kept", "n_layer"),
    [
        ([], {0: 0, 1: 1, 2: 2, 3: 3}, None),
        ([0], {1: 0, 2: 1, 3: 2}, 3),
        ([3], {0: 0, 1: 1, 2: 2}, 3),
        ([1, 2], {0: 0, 3: 1}, 2),
        ([0, 1, 2, 3], {}, 0),
        ([7], {0: 0, 1: 1, 2: 2, 3: 3}, 4),
    ],
)
def test_layers_get_new_numbers(prune: list[int], kept: dict[int, int], n_layer: int | None) -> None:
    names = ["output.weight", *layers(0, 1, 2, 3)]
    expected = {"output.weight": "output.weight"}
    expected |= {layers(old)[0]: layers(new)[0] for old, new in kept.items()}
    assert renumbered(names, prune) == (expected, n_layer)


def test_layers_of_an_encoder_are_numbered_as_they_appear() -> None:
    """Bytewise, 10 stands before 2; llama-quantize gives the numbers in that order, and none twice by chance."""
    names = layers(0, 1, 10, 2, prefix="enc.")
    kept, n_layer = renumbered(names, [0])
    assert list(kept.values()) == layers(0, 1, 2, prefix="enc.") and n_layer == 3
    with pytest.raises(RecipeError, match="would stand twice"):
        renumbered(names, [3])  # llama-quantize dies of it


def test_the_rules_go_by_the_new_numbers() -> None:
    specs = [TensorSpec(f"blk.{bid}.ffn_down.weight", (4, 256), QType.BF16) for bid in range(16)]
    facts = RecipeFacts("llama", n_layer=16, n_head=4, n_head_kv=4)
    plan = make_plan(specs, facts, Recipe(ftype("Q4_K_S")), False, prune_layers=range(0, 8))
    assert [(planned.spec.bid, planned.name, planned.target.name) for planned in plan.tensors] == [
        (bid, f"blk.{bid - 8}.ffn_down.weight", f"blk.{bid - 8}.ffn_down.weight") for bid in range(8, 16)
    ]
    assert [planned.qtype.name for planned in plan.tensors] == ["Q5_K", "Q5_K"] + ["Q4_K"] * 6
    assert plan.n_layer == 8


def test_a_copy_changes_no_type() -> None:
    specs = [
        TensorSpec("output.weight", (4, 256), QType.Q6_K),
        TensorSpec("token_embd.weight", (4, 256), QType.F16),
        TensorSpec("blk.0.attn_q.weight", (4, 256), QType.IQ2_XS),
    ]
    recipe = Recipe(
        ftype("copy"), tensor_types=(("attn", QType.Q8_0),), output_tensor_type=QType.F16, pure=True
    )
    assert recipe.ftype is COPY
    plan = make_plan(specs, RecipeFacts("llama", 1, 4, 4), recipe, False, left_as=lambda spec: spec.qtype)
    assert {planned.spec.name: planned.qtype for planned in plan.tensors} == {
        spec.name: spec.qtype for spec in specs
    }


def test_the_number_of_a_file_type_that_no_key_tells() -> None:
    """By the count of tensors (llama.cpp's guess), the first of equals; by weights, for a checkpoint."""
    types = [QType.F32, QType.Q4_K, QType.Q4_K, QType.F32]
    assert guessed_file_type(types) == 1024 + 15
    assert guessed_file_type(types[::-1]) == 1024 + 15
    assert guessed_file_type([*types, QType.F32]) == 1024
    assert guessed_file_type([]) == 1024
    assert guessed_file_type([QType.Q8_K]) == 1024
    assert converted_file_type([(QType.F32, 10), (QType.F32, 10), (QType.BF16, 100)]) == 32
    assert converted_file_type([(QType.MXFP4, 100), (QType.BF16, 10)]) == 38
    assert converted_file_type([]) == 0
