"""Types under a budget: the bytes of the file, the choice, the figures beside it, and the files that carry it on."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pico import TEXT, pico_mixtral

from calibration.importance.type_costs import TypeCosts, measure_type_costs
from calibration.text.text_settings import TextSettings
from gguf_export import ModelChoice, TextChoice, compare, export, inspect, plan_types, verify
from gguf_export.checking.inspect import ModelFacts, in_words
from gguf_export.comparing.measured import results_of
from gguf_export.metadata.type_keys import predicted_kld
from gguf_export.planning import plan_types as planning
from gguf_export.planning.budget import Budget
from gguf_export.planning.mixtures import nearest_ftype
from gguf_export.planning.results import TypePlan
from gguf_export.planning.types_file import read_types
from gguf_export.reports.compare_tables import files_table
from gguf_export.reports.plan_data import plan_json
from gguf_export.reports.plan_tables import forecast_table, kind_of, kinds_table, plan_words
from quantize.exceptions import OutputExistsError, RecipeError, TextError
from quantize.recipes.ftypes import ftype
from quantize.recipes.recipe import Recipe, RecipeFacts, make_plan
from quantize.recipes.tensor_types import read_tensor_types
from quantize.sources.checkpoint import open_checkpoint
from quantize.sources.gguf_file import GGUFFile
from quantize.tensors import QType


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pico_mixtral(tmp_path_factory.mktemp("models") / "Pico-4x1M-bf16", n_embd=256, n_ff=256, n_layer=3)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> TextSettings:
    path = tmp_path_factory.mktemp("texts") / "text.txt"
    path.write_text(TEXT * 6, encoding="utf-8")
    return TextSettings((path,), n_ctx=64, n_chunk=12)


@pytest.fixture(scope="module")
def planned(model: Path, text: TextSettings) -> TypePlan:
    return plan_types(model, text, like="Q4_K_M", n_token=256, n_held_out=2)


@pytest.fixture(scope="module")
def file(model: Path, planned: TypePlan, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = export(model, [planned.recipe], tmp_path_factory.mktemp("out"), imatrix=planned.imatrix)
    return made.files[0].path


@pytest.mark.parametrize(
    ("size", "n_bytes"),
    [
        ("1000", 1000),
        ("1.5KiB", 1536),
        ("2MB", 2_000_000),
        ("13.5 gib", 14495514624),
        ("4G", 4 * 10**9),
        (77, 77),
    ],
)
def test_sizes_are_read_as_people_write_them(size: str | int, n_bytes: int) -> None:
    assert Budget.of(None, size, None) == Budget(size=n_bytes)


@pytest.mark.parametrize(
    ("like", "size", "bpw"),
    [
        (None, None, None),
        ("Q4_K_M", "1GiB", None),
        ("Q4_K_M", None, 4.5),
        ("F16", None, None),
        ("COPY", None, None),
        ("Q9", None, None),
        (None, "much", None),
        (None, "0", None),
        (None, "-1GiB", None),
        (None, None, 0.0),
        (None, None, math.nan),
    ],
)
def test_a_budget_that_is_none_is_refused(like: str | None, size: str | None, bpw: float | None) -> None:
    with pytest.raises(RecipeError):
        Budget.of(like, size, bpw)


def test_the_file_is_as_large_as_was_planned(
    planned: TypePlan, file: Path, model: Path, tmp_path: Path
) -> None:
    usual = export(model, "Q4_K_M", tmp_path, imatrix=planned.imatrix).files[0]
    assert file.stat().st_size == planned.chosen.n_bytes <= planned.usual.n_bytes
    assert planned.usual.n_bytes == usual.path.stat().st_size
    assert planned.usual.n_bytes - planned.chosen.n_bytes < 0.02 * planned.usual.n_bytes
    types = {spec.name: spec.qtype.name for spec in GGUFFile(file).specs()}
    assert {name: types[name] for name in planned.types} == planned.types
    assert set(planned.types) == {
        spec.name for spec in GGUFFile(usual.path).specs() if spec.qtype.name != "F32"
    }
    assert {types[name] for name in planned.types} <= set(planned.candidates)


def test_size_and_bits_per_weight_are_kept(model: Path, text: TextSettings, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"n_token": 64, "n_held_out": 0, "candidates": ["q3_k", "Q4_K", "Q6_K"]}
    name = "a longer name " * 20
    by_size = plan_types(model, text, size="1.6MiB", name=name, **settings)
    made = export(model, [by_size.recipe], tmp_path, imatrix=by_size.imatrix, name=name).files[0]
    assert 1.57 * 2**20 < made.n_bytes == by_size.chosen.n_bytes <= 1.6 * 2**20
    by_bits = plan_types(model, text, bpw=4.0, **settings)
    made = export(model, [by_bits.recipe], tmp_path / "b", imatrix=by_bits.imatrix).files[0]
    assert 3.9 < made.bpw <= 4.0 and made.bpw == by_bits.chosen.bpw
    assert by_bits.ftype == "Q3_K_M" and set(by_bits.types.values()) <= {"Q3_K", "Q4_K", "Q6_K"}


def test_a_budget_below_the_smallest_types_is_refused_before_the_pass(
    model: Path, text: TextSettings
) -> None:
    with pytest.raises(RecipeError, match="smallest types") as error:
        plan_types(model, text, size="0.5MiB", candidates=["Q4_K"])
    assert error.value.setting == "size"
    with pytest.raises(RecipeError, match="F16"):
        plan_types(model, text, bpw=8.0, candidates=["F16"])


def test_the_prediction_is_scaled_by_what_was_measured(planned: TypePlan) -> None:
    usual, chosen = planned.usual, planned.chosen
    assert planned.n_measured == 2 and usual.measured and chosen.measured and planned.scale
    assert usual.unscaled > chosen.unscaled > 0
    factors = [one.measured.value / one.predicted for one in (usual, chosen) if one.measured]
    assert math.prod(factors) == pytest.approx(1)
    assert chosen.unscaled == pytest.approx(sum(tensor.cost for tensor in planned.tensors))
    assert 1 / 1.5 < factors[0] < 1.5


def test_without_held_out_chunks_nothing_is_measured(model: Path, text: TextSettings) -> None:
    planned = plan_types(model, text, like="Q3_K_M", n_token=64, n_held_out=0)
    assert planned.scale is None and planned.chosen.measured is None and planned.n_measured == 0
    assert planned.imatrix.chunk_count == 12
    assert "lower bound" in plan_words(planned)
    with pytest.raises(TextError):
        plan_types(model, replace(text, n_chunk=1), like="Q4_K_M")


def test_importances_that_are_given_are_used(model: Path, text: TextSettings, planned: TypePlan) -> None:
    again = plan_types(model, text, like="Q4_K_M", n_token=64, n_held_out=0, imatrix=planned.imatrix)
    assert again.imatrix.entries is planned.imatrix.entries


def test_a_tensor_of_which_nothing_is_known_keeps_its_type(
    model: Path, text: TextSettings, monkeypatch: pytest.MonkeyPatch
) -> None:

    def blind(*args: Any, **settings: Any) -> TypeCosts:
        found = measure_type_costs(*args, **settings)
        known = {name: costs for name, costs in found.costs.items() if "ffn_down" not in name}
        return replace(found, costs=known)

    monkeypatch.setattr(planning, "measure_type_costs", blind)
    remarks: list[str] = []
    planned = plan_types(
        model, text, like="Q4_K_M", n_token=64, n_held_out=0, note=lambda remark: remarks.append(str(remark))
    )
    downs = [tensor for tensor in planned.tensors if "ffn_down" in tensor.name]
    assert downs and all(tensor.qtype == tensor.usual_qtype for tensor in downs)
    assert any("nothing is known of 3 tensors" in remark for remark in remarks)


def test_the_lists_give_the_same_plan_back(model: Path, planned: TypePlan, tmp_path: Path) -> None:
    source = open_checkpoint(model)
    (tmp_path / "types.txt").write_text(planned.types_text(), encoding="utf-8")
    (tmp_path / "types.json").write_text(plan_json(planned), encoding="utf-8")
    facts = RecipeFacts.of(source.hparams)
    for types in (
        read_tensor_types(tmp_path / "types.txt"),
        read_types(tmp_path / "types.txt").tensor_types,
        read_types(tmp_path / "types.json").tensor_types,
    ):
        plan = make_plan(source.specs(), facts, Recipe(ftype("Q4_K_M"), tensor_types=types), True)
        found = {tensor.name: tensor.qtype.name for tensor in plan.tensors}
        assert {name: found[name] for name in planned.types} == planned.types and not plan.unmatched
    assert read_types(tmp_path / "types.json").recipe(source) == planned.recipe
    assert len(read_types(tmp_path / "types.txt").stated) == 1
    assert all(line == line.lower() and " " not in line for line in planned.types_text().splitlines())


@pytest.mark.parametrize(
    "content",
    [
        "{}",
        "[]",
        '{"types": {"output.weight": 3}}',
        '{"types": {"output.weight": "Q9"}}',
        '{"types": {}, "n_token": -1}',
        '{"types": {}, "n_token": 1, "chosen": {"predicted_kld": 1e400}}',
        '{"types": {}, "n_token": 1, "chosen": {"predicted_kld": "much"}}',
        '{"types": {}, "n_token": 1, "chosen": 2}',
    ],
)
def test_json_of_something_else_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "types.json").write_text(content, encoding="utf-8")
    with pytest.raises(RecipeError):
        read_types(tmp_path / "types.json")


@pytest.mark.parametrize("name", ["Q2_K", "Q3_K_M", "Q4_K_S", "Q4_K_M", "Q5_K_M", "Q6_K", "Q8_0"])
def test_the_nearest_mixture_is_found(name: str, model: Path) -> None:
    source = open_checkpoint(model)
    plan = make_plan(source.specs(), RecipeFacts.of(source.hparams), Recipe(ftype(name)), True)
    types = tuple((f"^{tensor.name}$", tensor.qtype) for tensor in plan.tensors)
    assert nearest_ftype(source, types).name == name
    assert nearest_ftype(source, (), n_bytes=plan.data_bytes).name == name


def test_types_of_few_bits_name_a_file_that_may_have_them(model: Path) -> None:
    source = open_checkpoint(model)
    plan = make_plan(source.specs(), RecipeFacts.of(source.hparams), Recipe(ftype("IQ2_M")), True)
    types = tuple((f"^{tensor.name}$", tensor.qtype) for tensor in plan.tensors)
    assert nearest_ftype(source, types).name == "IQ2_M"
    assert nearest_ftype(source, (), n_bytes=plan.data_bytes).name == "Q2_K"
    assert nearest_ftype(source, (), n_bytes=plan.data_bytes, qtypes=[QType.IQ2_S]).name == "IQ2_M"


@pytest.mark.slow
def test_types_of_few_bits_are_chosen_where_there_are_importances(model: Path, text: TextSettings) -> None:
    planned = plan_types(model, text, bpw=3.0, candidates=["IQ2_XS", "Q4_K"], n_held_out=0, n_token=64)
    chosen = {tensor.name: tensor.qtype for tensor in planned.tensors}
    assert "IQ2_XS" in chosen.values()
    assert chosen["token_embd.weight"] == chosen["output.weight"] == "Q4_K"
    alone = plan_types(model, text, bpw=4.0, candidates=["IQ2_XS"], n_held_out=0, n_token=64)
    kept = {tensor.name: (tensor.qtype, tensor.usual_qtype) for tensor in alone.tensors}
    assert all(qtype == usual for qtype, usual in (kept["token_embd.weight"], kept["output.weight"]))
    assert {qtype for name, (qtype, _) in kept.items() if name.startswith("blk.")} == {"IQ2_XS"}


def _chosen_row(file: Path) -> tuple[str, str]:
    """What `inspect` says of the choice, without the figure."""
    facts = inspect(file)
    assert isinstance(facts, ModelFacts)
    (row,) = [row for row in in_words(facts) if row[0] == "types chosen"]
    return row[0], row[1].rpartition(" ")[0]


def test_the_file_says_how_its_types_were_chosen(
    model: Path, planned: TypePlan, file: Path, tmp_path: Path
) -> None:
    keys = GGUFFile(file).keys
    assert keys["moe_gguf.types.method"] == "fisher" and keys["moe_gguf.types.n_token"] == planned.n_token
    assert predicted_kld(keys) == pytest.approx(planned.chosen.predicted, rel=1e-6)
    assert all(finding.severity == "info" for finding in verify(file, against=model))
    assert ("types chosen", f"fisher, on {planned.n_token} tokens, predicted KLD") == _chosen_row(file)
    plain = export(model, "BF16", tmp_path).files[0].path
    assert not [key for key in GGUFFile(plain).keys if key.startswith("moe_gguf.")]
    assert not [finding for finding in verify(file, against=plain) if "moe_gguf" in str(finding)]
    anew = export(file, "Q8_0", tmp_path, allow_requantize=True).files[0].path
    assert not [key for key in GGUFFile(anew).keys if key.startswith("moe_gguf.")]
    copy = export(file, "COPY", tmp_path).files[0].path
    assert GGUFFile(copy).keys["moe_gguf.types.method"] == "fisher"


def test_compare_shows_what_was_predicted(
    model: Path, planned: TypePlan, file: Path, text: TextSettings
) -> None:
    choice = TextChoice.of(str(text.paths[0]), n_ctx=64, n_chunk=2)
    columns, rows = files_table(results_of(compare((model, file), choice).comparison), brief=True)
    shown = dict(zip(columns, rows[-1], strict=True))[">predicted KLD"]
    assert float(shown) == pytest.approx(planned.chosen.predicted, rel=0.01)
    columns, _ = files_table(results_of(compare(ModelChoice.of(model, types=["Q8_0"]), choice).comparison))
    assert ">predicted KLD" not in columns


def test_tables_and_json_hold_the_figures(planned: TypePlan) -> None:
    columns, rows = kinds_table(planned)
    assert [row[0] for row in rows] == list(dict.fromkeys(kind_of(name) for name in planned.types))
    assert all(len(row) == len(columns) for row in rows)
    for row in rows:
        n = sum(kind_of(name) == row[0] for name in planned.types)
        assert n == 1 or sum(int(part.split()[1]) for part in row[1].split(", ")) == n
    columns, rows = forecast_table(planned)
    assert [row[0] for row in rows] == ["Q4_K_M", "chosen"] and columns[-1] == ">measured KLD"
    figures = json.loads(plan_json(planned))
    assert figures["types"] == planned.types
    assert figures["chosen"]["measured_kld"] == pytest.approx(planned.chosen.measured.value)  # type: ignore[union-attr]


def test_files_are_written_once(model: Path, text: TextSettings, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"like": "Q4_K_M", "n_token": 64, "n_held_out": 0}
    output, imatrix = tmp_path / "types.txt", tmp_path / "imatrix.gguf"
    planned = plan_types(model, text, output=output, save_imatrix=imatrix, **settings)
    assert output.read_text(encoding="utf-8") == planned.types_text() and imatrix.exists()
    with pytest.raises(OutputExistsError):
        plan_types(model, text, output=output, **settings)
