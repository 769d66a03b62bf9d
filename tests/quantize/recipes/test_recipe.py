"""Recipes and plans: the types that llama-quantize chooses, tensor by tensor, and what a recipe refuses."""

from __future__ import annotations

import json
import pickle
import random
from dataclasses import replace
from pathlib import Path

import gguf
import pytest
from places import BENCH, SNAPSHOTS
from recipe_cases import SMALL, Model, recipe_of, section, snapshot, snapshot_cases

from quantize.blocks import WRITABLE, block_format
from quantize.containers.keys import KeyValue
from quantize.exceptions import NeedsImatrixError, RecipeError
from quantize.ggml_types import FileType
from quantize.recipes.ftypes import FTYPES, NEED_IMPORTANCE, Ftype, ftype
from quantize.recipes.left_alone import converted_type
from quantize.recipes.recipe import (
    Plan,
    Recipe,
    RecipeFacts,
    candidates_for,
    make_plan,
    require_importances,
)
from quantize.recipes.tensor_types import parse_qtype, parse_tensor_type, read_tensor_types
from quantize.tensors import QType, TensorSpec

RECIPES = SNAPSHOTS / "recipes"
REFERENCE = BENCH / "reference"

CASES = snapshot_cases()


def plan_of(model: Model, name: str, *options: str, has_imatrix: bool = False) -> Plan:
    return make_plan(model.specs, model.facts, recipe_of(ftype(name), options), has_imatrix)


def types_of(planned: Plan) -> dict[str, str]:
    return {tensor.spec.name: tensor.qtype.name for tensor in planned.tensors}


@pytest.mark.parametrize("name", CASES)
def test_types_are_those_of_llama_quantize(name: str) -> None:
    sections = {}
    for case in CASES[name]:
        try:
            tensors = plan_of(
                case.model, case.ftype.name, *case.options, has_imatrix=case.has_imatrix
            ).tensors
        except RecipeError:
            tensors = ()
        types = {
            tensor.spec.name: (tensor.qtype.name, tensor.fallback_from.name if tensor.fallback_from else "")
            for tensor in tensors
        }
        sections[case.title] = section(case, types)
    heading, _, expected = (RECIPES / f"{name}.txt").read_text(encoding="utf-8").partition("\n")
    assert "llama-quantize" in heading
    assert snapshot(sections, "").partition("\n")[2] == expected


def test_every_file_type_has_a_snapshot() -> None:
    assert {path.stem for path in RECIPES.iterdir()} == {known.name for known in FTYPES} | {"options"}


def test_types_and_order_are_those_of_the_reference_files() -> None:
    if not REFERENCE.is_dir():
        pytest.skip("no ../shared/bench: the reference files of harmony-nano are not part of the project")
    n_embd, n_ff, n_expert, n_vocab = 256, 768, 4, 4096
    model = Model(n_expert, False, 6, n_embd, n_ff, n_head=8, n_head_kv=4, n_vocab=n_vocab)  # the same widths
    files = json.loads((REFERENCE / "llama-quantize-sha256.json").read_text(encoding="utf-8"))
    for name, columns in files.items():
        for column, tensors in columns.items():
            planned = plan_of(model, name, has_imatrix=column == "imatrix")
            assert list(types_of(planned).items()) == [(key, value["type"]) for key, value in tensors.items()]


@pytest.mark.parametrize("known", FTYPES, ids=lambda known: known.name)
def test_ids_are_those_of_general_file_type(known: Ftype) -> None:
    name = "ALL_F32" if known.name == "F32" else f"MOSTLY_{known.name}"
    assert known.id == FileType[name]
    assert ftype(str(known.id)) is known
    assert ftype(known.name.lower()) is known


def test_a_file_type_has_the_aliases_of_llama_quantize() -> None:
    assert [ftype(name).name for name in ("Q3_K", "q4_k", "Q5_K")] == ["Q3_K_M", "Q4_K_M", "Q5_K_M"]


@pytest.mark.parametrize("name", ["Q4_K_XL", "", "999", "-1"])
def test_an_unknown_file_type_names_the_known(name: str) -> None:
    with pytest.raises(RecipeError, match=r"unknown file type .*Q4_K_M") as error:
        ftype(name)
    assert "\n" not in str(error.value)


def test_the_order_of_the_source_does_not_matter() -> None:
    model = Model(8, n_layer=12)
    shuffled = random.Random(1).sample(model.specs, len(model.specs))
    recipe = Recipe(ftype("Q4_K_M"))
    planned = make_plan(shuffled, model.facts, recipe, False)
    assert planned == make_plan(model.specs, model.facts, recipe, False)
    names = [tensor.spec.name for tensor in planned.tensors]
    assert names[:4] == ["output.weight", "output_norm.weight", "token_embd.weight", "blk.0.attn_k.weight"]
    assert names.index("blk.2.ffn_norm.weight") < names.index("blk.10.attn_k.weight")


def test_offsets_and_sizes() -> None:
    specs = [
        TensorSpec("output.weight", (3, 256), QType.BF16),
        TensorSpec("output_norm.weight", (3,), QType.BF16),
        TensorSpec("token_embd.weight", (5, 64), QType.BF16),
        TensorSpec("blk.0.ffn_up_exps.weight", (2, 3, 256), QType.BF16),
    ]
    planned = make_plan(specs, Model(2, n_layer=1).facts, Recipe(ftype("Q4_K_M")), False)
    #  Q6_K: 3 rows of 210 bytes; F32: 3 of 4; Q5_0 for Q4_K: 10 blocks of 22; Q4_K: 2 experts of 3 rows of 144
    assert [(tensor.n_bytes, tensor.offset) for tensor in planned.tensors] == [
        (630, 0),
        (12, 640),
        (220, 672),
        (864, 896),
    ]
    assert planned.tensors[3].row_bytes == 144
    assert planned.n_bytes == 630 + 12 + 220 + 864
    assert planned.data_bytes == 896 + 864
    assert planned.bpw == 8 * 1726 / (768 + 3 + 320 + 1536)
    assert [(tensor.spec.name, tensor.fallback_from) for tensor in planned.fallbacks] == [
        ("token_embd.weight", QType.Q4_K)
    ]


def test_an_empty_plan_has_no_bytes() -> None:
    planned = make_plan([], SMALL.facts, Recipe(ftype("Q4_0")), False)
    assert (planned.n_bytes, planned.data_bytes, planned.bpw) == (0, 0, 0.0)


def test_q2_k_s_needs_an_imatrix() -> None:
    for has_imatrix in (False, True):
        planned = plan_of(SMALL, "Q2_K_S", has_imatrix=has_imatrix)
        for tensor in planned.tensors:
            needs = tensor.qtype is QType.Q2_K and tensor.spec.name != "token_embd.weight"
            assert tensor.requires_imatrix == needs, tensor.spec.name
        require_importances(planned, lambda _name: True)
        with pytest.raises(NeedsImatrixError) as refused:
            require_importances(planned, lambda name: name != "blk.1.ffn_up_exps.weight")
        assert str(refused.value).startswith("blk.1.ffn_up_exps.weight: Q2_K_S makes it Q2_K, which needs")
        assert refused.value.setting == "tensor_type" and "--" not in str(refused.value)
    plain = plan_of(SMALL, "Q2_K")
    assert not any(tensor.requires_imatrix for tensor in plain.tensors)
    require_importances(plain, lambda _name: False)


def test_types_of_few_bits_need_an_imatrix() -> None:
    assert {qtype for qtype in WRITABLE if block_format(qtype).needs_importance} == NEED_IMPORTANCE
    planned = plan_of(SMALL, "IQ2_XXS", has_imatrix=True)
    assert {tensor.qtype.name for tensor in planned.tensors if tensor.requires_imatrix} == {"IQ2_XXS"}
    with pytest.raises(NeedsImatrixError, match=r"^blk\.0\.attn_k\.weight: .* nor for 23 more such tensors;"):
        require_importances(planned, lambda _name: False)
    with pytest.raises(NeedsImatrixError, match=r"^blk\.3\.ffn_up.* there are none for it; .* covers it,"):
        require_importances(planned, lambda name: name != "blk.3.ffn_up_exps.weight")
    require_importances(plan_of(SMALL, "IQ3_S"), lambda _name: False)


@pytest.mark.parametrize(("qtype", "needs"), [("iq2_s", False), ("iq1_m", False), ("iq2_xs", True)])
def test_the_embedding_needs_importances_where_ggml_aborts_without(qtype: str, needs: bool) -> None:
    """llama-quantize lets the output and the embedding be of any type."""
    for option, name in (("output-tensor", "output.weight"), ("token-embedding", "token_embd.weight")):
        planned = plan_of(SMALL, "Q4_K_M", f"--{option}-type", qtype, has_imatrix=True)
        needing = {tensor.name for tensor in planned.tensors if tensor.requires_imatrix}
        assert needing == ({name} if needs else set())


def test_candidates_of_a_tensor() -> None:
    few = (QType.IQ2_XS, QType.IQ2_S, QType.IQ3_S, QType.Q2_K)
    matrix = TensorSpec("blk.0.attn_q.weight", (4, 256), QType.BF16)
    assert candidates_for(matrix, few, has_importance=True) == few
    assert candidates_for(matrix, few, has_importance=False) == few[2:]
    embedding = TensorSpec("token_embd.weight", (4, 256), QType.BF16)
    assert candidates_for(embedding, few, has_importance=False) == few[1:]
    narrow = TensorSpec("blk.0.attn_q.weight", (4, 96), QType.BF16)
    assert candidates_for(narrow, few, has_importance=False) == (QType.IQ4_NL, QType.Q4_0)


def test_a_type_without_a_substitute_must_fit() -> None:
    model = Model(4, n_layer=1, n_embd=288, n_head=9, n_head_kv=3)
    with pytest.raises(
        RecipeError, match=r"rows of 288 weights do not divide .* of Q1_0; choose another type"
    ):
        plan_of(model, "Q1_0")


@pytest.mark.parametrize(
    ("option", "qtype", "tensor"),
    [
        ("--output-tensor-type", "q6_k", "output.weight"),
        ("--token-embedding-type", "q8_0", "token_embd.weight"),
    ],
)
def test_a_demanded_type_must_fit(option: str, qtype: str, tensor: str) -> None:
    model = Model(4, n_layer=1, n_embd=40, n_head=1, n_head_kv=1)
    with pytest.raises(
        RecipeError, match=rf"^{tensor}: rows of 40 weights .*{qtype.upper()}; choose another"
    ):
        plan_of(model, "Q4_K_M", option, qtype)


def test_an_expert_tensor_must_name_a_layer() -> None:
    for name in ("ffn_down_exps.weight", "blk.7.ffn_down_exps.weight"):
        specs = [TensorSpec(name, (4, 256, 256), QType.BF16)]
        with pytest.raises(RecipeError, match=rf"^{name}: names no layer of a model with 4 layers"):
            make_plan(specs, SMALL.facts, Recipe(ftype("Q4_K_M")), False)


def test_patterns_that_decide_nothing_are_told() -> None:
    options = ("attn_q=q8_0", "attn_q|attn_k=q6_k", "attn_q=q4_0", "norm=q8_0", "ATTN_V=q4_k")
    words = [word for option in options for word in ("--tensor-type", option)]
    assert plan_of(SMALL, "Q4_K_S", *words).unmatched == ("attn_q", "norm")
    assert plan_of(SMALL, "BF16", *words).unmatched == tuple(option.partition("=")[0] for option in options)


@pytest.mark.parametrize("source", [QType.F32, QType.F16, QType.BF16])
def test_what_is_left_alone_keeps_the_type_of_a_float_source(source: QType) -> None:
    specs = [TensorSpec(spec.name, spec.shape, source) for spec in SMALL.specs]
    types = types_of(make_plan(specs, SMALL.facts, Recipe(ftype("Q8_0"), leave_output_tensor=True), False))
    assert types["output.weight"] == source.name
    assert types["output_norm.weight"] == types["blk.0.ffn_gate_inp.weight"] == "F32"
    assert types["blk.0.ffn_up_exps.weight"] == "Q8_0"


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("blk.0.attn_q.weight", (8, 256), QType.BF16),
        ("blk.0.attn_q.bias", (8,), QType.F32),
        ("blk.0.ffn_up_exps.bias", (4, 8), QType.F32),
        ("blk.0.attn_q_norm.weight", (4, 32), QType.F32),
        ("blk.0.ffn_gate_inp.weight", (4, 256), QType.F32),
        ("rope_freqs.weight", (16,), QType.F32),
    ],
)
def test_the_converters_types(name: str, shape: tuple[int, ...], expected: QType) -> None:
    assert converted_type(TensorSpec(name, shape, QType.BF16)) is expected


def test_a_quantized_source_is_not_converted() -> None:
    assert converted_type(TensorSpec("blk.0.ffn_gate_inp.weight", (4, 256), QType.Q8_0)) is QType.Q8_0


def test_a_plan_of_tensors_of_any_rank_and_type() -> None:
    """A GGUF of another program may hold types that nothing here can write, and stacks that are no experts."""
    specs = [
        TensorSpec("output_norm.weight", (256,), QType.F32),
        TensorSpec("blk.0.ssm_conv1d.weight", (3, 256), QType.IQ2_XXS),
        TensorSpec("blk.0.attn_k_b.weight", (5, 4, 256), QType.Q8_0),
        TensorSpec("v.proj.weight", (2, 3, 4, 256), QType.BF16),
        TensorSpec("blk.0.ffn_up.weight", (4, 256), QType.IQ1_S),
    ]
    assert [spec.n_matrix for spec in specs] == [1, 1, 5, 6, 1]
    planned = make_plan(
        specs, RecipeFacts("other", n_layer=1, n_head=5, n_head_kv=5), Recipe(ftype("Q4_0")), False
    )
    assert types_of(planned) == {
        "output_norm.weight": "F32",
        "v.proj.weight": "Q4_0",
        "blk.0.attn_k_b.weight": "Q4_0",
        "blk.0.ffn_up.weight": "Q4_0",
        "blk.0.ssm_conv1d.weight": "IQ2_XXS",  # small and precious: stays as it is
    }
    for tensor in planned.tensors:
        assert tensor.n_bytes == tensor.row_bytes * tensor.spec.n_row * tensor.spec.n_matrix
        assert tensor.n_bytes == tensor.spec.n_elements // tensor.qtype.block_size * tensor.qtype.type_size
    assert planned.data_bytes == planned.tensors[-1].offset + -(-planned.tensors[-1].n_bytes // 32) * 32


def test_facts_are_in_the_keys_of_any_file() -> None:
    keys = [
        KeyValue.u32("other.block_count", 80),
        KeyValue.array("other.attention.head_count", [64, 32], gguf.GGUFValueType.UINT32),
        KeyValue.array("other.attention.head_count_kv", [8, 4], gguf.GGUFValueType.UINT32),
        KeyValue.u32("other.expert_count", 16),
    ]
    facts = RecipeFacts.of_keys("other", keys)
    assert facts == RecipeFacts("other", n_layer=80, n_head=64, n_head_kv=8, n_expert=16) and facts.n_gqa == 8
    assert RecipeFacts.of_keys("other", keys[:2]) == RecipeFacts("other", 80, 64, 64)
    assert RecipeFacts.of_keys("other", []).n_gqa == 0


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("attn_q", "PATTERN=TYPE"),
        ("=q8_0", "PATTERN=TYPE"),
        ("attn_q=", "PATTERN=TYPE"),
        ("attn_q=q9_9", "unknown tensor type 'q9_9'; known: F32"),
        ("attn_q=q8_k", "unknown tensor type 'q8_k'"),
        ("attn_(q=q8_0", "not a regular expression"),
        ("blk.[[:digit:]]=q8_0", "not a regular expression"),
        ("(?=q)=q8_0", "not a regular expression"),  # split at the first =, as in llama-quantize
    ],
)
def test_a_bad_tensor_type(text: str, complaint: str) -> None:
    with pytest.raises(RecipeError) as error:
        parse_tensor_type(text)
    assert complaint in str(error.value)
    assert "\n" not in str(error.value)


def test_tensor_types_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "types.txt"
    path.write_bytes(b"  attn_q=q8_0 attn_k=Q6_k\r\n\n\tblk\\.[0-3]\\.ffn_down=F16")
    pairs = (("attn_q", QType.Q8_0), ("attn_k", QType.Q6_K), (r"blk\.[0-3]\.ffn_down", QType.F16))
    assert read_tensor_types(path) == pairs


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"attn_q=q8_0 # queries", "'#' is not of the form"),
        (b"\xff=q8_0", "not a text file in UTF-8"),
        (None, "file is missing"),
    ],
)
def test_a_bad_file_of_tensor_types_is_named(tmp_path: Path, content: bytes | None, complaint: str) -> None:
    path = tmp_path / "types.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(RecipeError) as error:
        read_tensor_types(path)
    assert str(path) in str(error.value)
    assert complaint in str(error.value)


def test_a_recipe_is_checked_when_it_is_made() -> None:
    with pytest.raises(RecipeError, match="unknown tensor type 'Q8_K'"):
        Recipe(ftype("Q4_K_M"), tensor_types=(("attn_q", QType.Q8_K), ("attn_q", QType.Q8_0)))
    with pytest.raises(RecipeError, match="not a regular expression"):
        Recipe(ftype("Q4_K_M"), tensor_types=(("*", QType.Q8_0),))


def test_recipes_and_plans_can_be_pickled() -> None:
    planned = plan_of(SMALL, "Q4_K_M", "--tensor-type", "attn_q=q8_0")
    assert pickle.loads(pickle.dumps(planned)) == planned
    recipe = recipe_of(ftype("Q4_K_M"), ["--tensor-type", "attn_q=q8_0"])
    assert pickle.loads(pickle.dumps(recipe)) == recipe


def test_70b_is_a_matter_of_layers_heads_and_experts() -> None:
    def attn_v(model: Model) -> set[str]:
        return {qtype for name, qtype in types_of(plan_of(model, "Q3_K_S")).items() if "attn_v" in name}

    dense = Model(0, n_layer=80, n_head_kv=1)
    assert attn_v(dense) == attn_v(replace(dense, n_expert=4)) == {"Q5_K"}
    assert attn_v(replace(dense, n_layer=79)) == attn_v(replace(dense, n_head_kv=8)) == {"Q3_K"}
    assert attn_v(replace(dense, n_expert=8)) == {"Q8_0"}


def test_type_names_are_understood_in_any_case() -> None:
    assert parse_qtype("q4_K") is parse_qtype("Q4_k") is QType.Q4_K
