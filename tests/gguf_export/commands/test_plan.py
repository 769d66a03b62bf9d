"""`plan`, and `export` with types that were chosen: files, tables, and refusals before the text runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from command_line import TEXT, check_one_line, invoke
from pico import pico_mixtral

from gguf_export.planning import plan_types
from quantize.sources.gguf_file import GGUFFile


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pico_mixtral(tmp_path_factory.mktemp("models") / "Pico-4x1M-bf16")


@pytest.fixture
def text(tmp_path: Path) -> list[Any]:
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    return ["--text", tmp_path / "text.txt", "--ctx", 32, "--chunks", 6, "--cost-tokens", 64]


@pytest.fixture(scope="module")
def listed(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a plan: types.txt, types.json, and what was printed."""
    folder = tmp_path_factory.mktemp("plan")
    (folder / "text.txt").write_text(TEXT, encoding="utf-8")
    words = ["--text", folder / "text.txt", "--ctx", 32, "--chunks", 6, "--cost-tokens", 64, "--measure", 1]
    files = ["-o", folder / "types.txt", "--json", folder / "types.json", "--save-imatrix", folder / "m.gguf"]
    done = invoke("plan", model, "--like", "Q4_K_M", *words, *files)
    assert done.exit_code == 0, done.output
    (folder / "printed").write_text(done.stdout, encoding="utf-8")
    return folder


@pytest.fixture
def no_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any, **__: Any) -> None:
        raise AssertionError("the text runs through the model")

    monkeypatch.setattr(plan_types, "measure_type_costs", refused)


def test_plan_prints_what_moved_and_writes_the_types(listed: Path) -> None:
    printed = (listed / "printed").read_text(encoding="utf-8")
    for word in ("ffn_down_exps", "predicted KLD", "measured KLD", "chosen", "held out", "types.json"):
        assert word in printed
    assert "^blk\\.0\\.attn_q\\.weight$=" in (listed / "types.txt").read_text(encoding="utf-8")
    figures = json.loads((listed / "types.json").read_text(encoding="utf-8"))
    assert figures["chosen"]["n_bytes"] <= figures["usual"]["n_bytes"] and figures["n_measured"] == 1


def test_without_measuring_the_prediction_is_called_a_lower_bound(
    model: Path, text: list[Any], tmp_path: Path
) -> None:
    words = ["--no-measure", "-t", "Q4_0", "-t", "Q8_0", "--json", tmp_path / "types.json"]
    done = invoke("plan", model, "--bpw", 6, *text, *words)
    assert done.exit_code == 0 and "lower bound" in done.stdout and "measured KLD" not in done.stdout
    figures = json.loads((tmp_path / "types.json").read_text(encoding="utf-8"))
    assert set(figures["types"].values()) == {"Q4_0", "Q8_0"} and figures["scale"] is None


@pytest.mark.parametrize("name", ["types.txt", "types.json"])
def test_export_takes_the_list_of_a_plan(name: str, model: Path, listed: Path, tmp_path: Path) -> None:
    done = invoke(
        "export", model, "--types", listed / name, "--imatrix", listed / "m.gguf", "-o", tmp_path, "-q"
    )
    assert (done.exit_code, done.stdout) == (0, "")
    (path,) = tmp_path.iterdir()
    types = json.loads((listed / "types.json").read_text(encoding="utf-8"))["types"]
    found = {spec.name: spec.qtype.name for spec in GGUFFile(path).specs()}
    assert {name: found[name] for name in types} == types
    keys = GGUFFile(path).keys
    assert keys["moe_gguf.types.method"] == ("fisher" if name.endswith("json") else "listed")
    assert ("moe_gguf.types.predicted_kld" in keys) == name.endswith("json")
    assert invoke("verify", path, "--against", model, "--imatrix", listed / "m.gguf").exit_code == 0


def test_a_file_type_beside_the_list_names_the_file(model: Path, listed: Path, tmp_path: Path) -> None:
    done = invoke("export", model, "--types", listed / "types.txt", "-t", "q5_k_s", "-o", tmp_path, "-q")
    assert done.exit_code == 0 and next(tmp_path.iterdir()).name == "Pico-4x1M-Q5_K_S.gguf", done.output


def test_export_chooses_types_on_the_way(model: Path, listed: Path, text: list[Any], tmp_path: Path) -> None:
    words = ["export", model, "--like", "Q4_K_M", *text, "--measure", 1, "-o", tmp_path / "out"]
    done = invoke(*words, "--save-imatrix", tmp_path / "m.gguf")
    assert done.exit_code == 0 and "measured KLD" in done.stdout and "read once" in done.stdout, done.output
    (path,) = (tmp_path / "out").iterdir()
    figures = json.loads((listed / "types.json").read_text(encoding="utf-8"))
    found = {spec.name: spec.qtype.name for spec in GGUFFile(path).specs()}
    assert {name: found[name] for name in figures["types"]} == figures["types"]
    usual = ["-t", "Q4_K_M", "--imatrix", tmp_path / "m.gguf", "-o", tmp_path / "usual"]
    assert invoke("export", model, *usual).exit_code == 0
    assert path.stat().st_size <= (tmp_path / "usual" / path.name).stat().st_size
    assert GGUFFile(path).keys["quantize.imatrix.file"] == "m.gguf"
    assert invoke("verify", path, "--against", model, "--imatrix", tmp_path / "m.gguf").exit_code == 0


@pytest.mark.usefixtures("no_pass")
def test_files_that_exist_are_refused_before_the_text_runs(
    model: Path, listed: Path, text: list[Any], tmp_path: Path
) -> None:
    check_one_line(invoke("plan", model, "--like", "Q4_K_M", *text, "-o", listed / "types.txt"), "--force")
    check_one_line(
        invoke("plan", model, "--like", "Q4_K_M", *text, "--json", text[1], "--force"), "is read, too"
    )
    (tmp_path / "Pico-4x1M-Q4_K_M.gguf").write_bytes(b"mine")
    words = ["export", model, "--like", "Q4_K_M", *text, "-o", tmp_path]
    check_one_line(invoke(*words), "--force")
    check_one_line(invoke(*words[:3], "Q4_K_S", *words[4:], "--save-imatrix", listed / "m.gguf"), "--force")


@pytest.mark.usefixtures("no_pass")
def test_what_means_nothing_is_refused(model: Path, listed: Path, text: list[Any]) -> None:
    for words, named in (
        (["plan", model, *text], "give one of --like, --size and --bpw"),
        (["plan", model, *text, "--like", "Q4_K_M", "--bpw", 4], "give one of --like, --size and --bpw"),
        (["plan", model, "--like", "Q4_K_M"], "--text"),
        (["export", model], "give -t TYPE, --types FILE, or a budget"),
        (["export", model, "--like", "Q4_K_M"], "--text"),
        (["export", model, "--candidates", "Q4_K", "-t", "Q4_K_M"], "--candidates means nothing without"),
        (["export", model, "--like", "Q4_K_M", *text, "-t", "Q4_K_M"], "-t means nothing beside"),
        (["export", model, "--like", "Q4_K_M", *text, "--pure"], "another choice of tensor types"),
        (["export", model, "--like", "Q4_K_M", *text, "--prune-layers", 0], "--prune-layers means nothing"),
        (["export", model, "--types", listed / "types.txt", "--pure"], "means nothing beside --types"),
    ):
        done = invoke(*words)
        assert done.exit_code == 2 and named in done.stderr, done.output
    check_one_line(invoke("plan", model, *text, "--size", "huge"), "13.5GiB")
    check_one_line(invoke("plan", model, *text, "--size", "1KiB"), "--size")
    check_one_line(invoke("export", model, "--types", listed / "m.gguf"), "m.gguf")
