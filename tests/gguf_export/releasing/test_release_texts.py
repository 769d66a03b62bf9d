"""A release that is calibrated and judged by several texts, dialogues among them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from command_line import TEXT, check_one_line, invoke
from no_llama import leave_out_llama_cpp
from pico import pico_mixtral

from gguf_export.commands.exit_codes import INPUT

STEM = "Pico-4x1M"


@pytest.fixture(scope="module", autouse=True)
def passed() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        leave_out_llama_cpp(patch)
        yield


def dialogues(first: str, n: int = 24) -> str:
    lines = []
    for i in range(n):
        messages = [
            {"role": "user", "content": f"{first} {i}? {TEXT[i : i + 90]}"},
            {"role": "assistant", "content": TEXT[3 * i : 3 * i + 120]},
        ]
        lines.append(json.dumps({"messages": messages}))
    return "\n".join(lines) + "\n"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("place")
    pico_mixtral(place / f"{STEM}-bf16")
    (place / "calibration.txt").write_text(TEXT * 3)
    (place / "held-out.txt").write_text(TEXT[300:] * 3)
    (place / "seen.jsonl").write_text(dialogues("What is"))
    (place / "chats.jsonl").write_text(dialogues("Where was"))
    return place


def words(place: Path, *more: Any) -> list[Any]:
    return [
        *("release", place / f"{STEM}-bf16", "-t", "Q4_K_M", "--license", "mit", "--quiet"),
        *("--chat-template", "chatml", *more),
    ]


def test_texts_have_names_and_dialogues_are_written_by_the_template(place: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    texts = ["--text", place / "calibration.txt", "--text", f"chat={place / 'seen.jsonl'}"]
    judges = ["--judge", f"plain={place / 'held-out.txt'}", "--judge", f"dialogue={place / 'chats.jsonl'}"]
    given = words(place, *texts, *judges, "--judge-chunks", 2, "-o", folder)
    done = invoke(*given)
    assert done.exit_code == 0, done.output
    card = (folder / "README.md").read_text()
    assert "| model | plain | dialogue | all |" in card
    assert "with special tokens parsed: dialogue." in card
    assert "--text calibration.txt --text chat=seen.jsonl" in card
    told = json.loads((folder / "report/compare.json").read_text())
    assert [text["name"] for text in told["texts"]] == ["plain", "dialogue"]
    recipe = json.loads((folder / "recipe.json").read_text())
    assert [text["name"] for text in recipe["calibration"]] == ["calibration.txt", "chat"]
    assert invoke(*given).exit_code == 0
    (folder / f"{STEM}-imatrix.gguf").rename(tmp_path / "imatrix.gguf")
    again = invoke(
        *("release", place / f"{STEM}-bf16", "--from", folder / "recipe.json", "-o", tmp_path / "again"),
        *(*texts, "--quiet"),
    )
    assert again.exit_code == 0, again.output


def test_what_cannot_judge_is_said_before_the_work(place: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.jsonl"
    broken.write_text(dialogues("Where was") + '{"messages": [{"role": "user"}]}\n')
    out = ["--text", place / "calibration.txt", "-o", tmp_path / "out"]
    check_one_line(invoke(*words(place, *out, "--judge", broken)), "broken.jsonl: line 25", INPUT)
    twins = ["--judge", f"a={place / 'held-out.txt'}", "--judge", f"a={place / 'chats.jsonl'}"]
    check_one_line(invoke(*words(place, *out, *twins)), "two texts are called", INPUT)
    assert not (tmp_path / "out").exists()
