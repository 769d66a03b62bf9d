"""The texts of a release: what stands for one that is not given, and what may not judge."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from command_line import check_one_line, invoke
from no_llama import leave_out_llama_cpp
from pico import pico_mixtral

from calibration.text.built_in import CALIBRATION, HELD_OUT, built_in_files
from gguf_export.commands.exit_codes import INPUT
from gguf_export.releasing.texts import texts_of
from quantize.exceptions import TextError
from quantize.telling import Remark

KINDS = ["code", "data", "docs", "languages", "prose", "chat"]
LINES = [f"line {n} of a text whose lines are long enough that no other text has them" for n in range(40)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pico_mixtral(tmp_path_factory.mktemp("texts") / "Pico-4x1M-bf16")


def prompts(model: Path, *of_each: str) -> Path:
    path = model / "mergekit_moe_config.yml"
    experts = [{"source_model": name, "positive_prompts": list(of_each)} for name in "abcd"]
    path.write_text(yaml.safe_dump({"experts": experts}))
    return path


def written(path: Path, lines: list[str]) -> Path:
    path.write_text("\n".join(lines) + "\n")
    return path


def test_without_a_text_the_built_in_ones_count(model: Path) -> None:
    chosen = texts_of(model, (), ())
    assert [text.name for text in chosen.texts] == [CALIBRATION, CALIBRATION]
    assert [text.path for text in chosen.texts] == [*(built_in_files(CALIBRATION) or {}).values()]
    assert [text.name for text in chosen.judges] == KINDS and not chosen.prompts


def test_the_prompts_of_a_merge_count_beside_them(model: Path, tmp_path: Path) -> None:
    path = prompts(model, "write code", "tell a story")
    assert [text.path for text in texts_of(model, (), ()).prompts] == [path]
    own = written(tmp_path / "own.txt", LINES)
    assert texts_of(model, (own,), ()).prompts == ()
    prompts(model)
    told: list[Remark] = []
    assert texts_of(model, (), (), told.append).prompts == ()
    assert [remark.message for remark in told] == ["holds no positive_prompts of experts"]
    path.unlink()


def test_what_calibrates_does_not_judge(model: Path, tmp_path: Path) -> None:
    own = written(tmp_path / "own.txt", LINES)
    for text, judge in ((HELD_OUT, HELD_OUT), (HELD_OUT, None), (CALIBRATION, CALIBRATION), (own, own)):
        with pytest.raises(TextError, match="is the calibration text, too"):
            texts_of(model, (Path(text),), (str(judge),) if judge else ())
    longer = written(tmp_path / "longer.txt", [*LINES[:30], *(line.upper() for line in LINES)])
    with pytest.raises(TextError, match=r"shares 30 of 70 longer lines with own\.txt"):
        texts_of(model, (own,), (f"mine={longer}",))
    few = written(tmp_path / "few.txt", [*LINES[:4], *(line.upper() for line in LINES)])
    assert texts_of(model, (own,), (str(few),)).judges[0].name == "few"


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Sums whose digits do not depend on how many threads are free."""
    n_thread = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n_thread)


@pytest.fixture
def words(model: Path, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """A release with few chunks."""
    leave_out_llama_cpp(monkeypatch)
    few = ["--chunks", 2, "--judge-chunks", 1, "--license", "mit", "--chat-template", "none", "--quiet"]
    return ["release", model, "--repo", "somebody/Pico-GGUF", "-t", "Q8_0", "-t", "Q4_K_M", *few]


def test_a_held_out_text_that_calibrates_is_one_line(words: list[Any], tmp_path: Path) -> None:
    done = invoke(*words, "-o", tmp_path / "out", "--text", HELD_OUT)
    check_one_line(done, "give another file as --judge", INPUT)
    check_one_line(invoke(*words, "--text", "builtin:x"), "builtin:x: is no built-in text", INPUT)


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_a_release_without_texts_and_its_recipe(model: Path, words: list[Any], tmp_path: Path) -> None:
    done = invoke(*words, "-o", tmp_path / "out")
    assert done.exit_code == 0, done.output
    recipe = json.loads((tmp_path / "out/recipe.json").read_text())
    assert [(text["name"], text["file"]) for text in recipe["calibration"]] == [
        (CALIBRATION, "moe-gguf-calibration.txt"),
        (CALIBRATION, "moe-gguf-calibration-chat.jsonl"),
    ]
    assert [text["name"] for text in recipe["judged_by"]] == KINDS
    assert all(len(text["sha256"]) == 64 for text in recipe["calibration"] + recipe["judged_by"])
    card = (tmp_path / "out/README.md").read_text()
    assert f"{CALIBRATION} (2 chunks" in card and "--text" not in card and "--judge " not in card
    assert invoke(*words, "-o", tmp_path / "out").exit_code == 0

    alone = tmp_path / "elsewhere" / "recipe.json"  # without the importance matrix
    alone.parent.mkdir()
    alone.write_text(json.dumps(recipe))
    done = invoke("release", model, "--from", alone, "-o", tmp_path / "again", "--quiet")
    assert done.exit_code == 0, done.output
    for name, told in recipe["files"].items():
        assert f"{name}: SHA-256 {told['sha256']}, as the recipe says" in done.output
