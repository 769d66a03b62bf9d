"""A release whose larger files are cut into parts."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from command_line import TEXT, invoke
from no_llama import leave_out_llama_cpp
from pico import pico_mixtral

from gguf_export.publishing.release_files import in_order, release_files
from gguf_export.releasing.settings import ReleaseSettings
from gguf_export.writing.export import plan
from quantize.telling import discard

STEM = "Pico-4x4M"
WHOLE = f"{STEM}-Q2_K.gguf"


@pytest.fixture(scope="module", autouse=True)
def passed() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        leave_out_llama_cpp(patch)
        yield


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("place")
    pico_mixtral(place / f"{STEM}-bf16", n_embd=256, n_ff=512, n_head=4, n_head_kv=2)
    (place / "calibration.txt").write_text(TEXT * 3)
    (place / "held-out.txt").write_text(TEXT[300:] * 3)
    return place


def words(place: Path, size: str, *more: Any) -> list[Any]:
    return [
        *("release", place / f"{STEM}-bf16", "-t", "Q8_0", "-t", "Q2_K", "--license", "mit", "--repo", "a/b"),
        *("--text", place / "calibration.txt", "--judge", place / "held-out.txt", "--judge-chunks", 2),
        *("--chunks", 2, "--chat-template", "none", "--split-max-size", size, *more),
    ]


@pytest.fixture(scope="module")
def made(place: Path) -> Path:
    folder = place / "out"
    done = invoke(*words(place, "2M", "-o", folder, "--quiet"))
    assert done.exit_code == 0, done.output
    return folder


def parts(folder: Path) -> list[Path]:
    return sorted((folder / f"{STEM}-Q8_0").iterdir())


def test_parts_lie_in_a_folder_and_small_files_are_whole(made: Path) -> None:
    n = len(parts(made))
    assert n > 1 and (made / WHOLE).exists()
    assert [path.name for path in parts(made)] == [
        f"{STEM}-Q8_0-{no:05d}-of-{n:05d}.gguf" for no in range(1, n + 1)
    ]


def test_all_that_lies_beside_them_follows(made: Path) -> None:
    first = f"{STEM}-Q8_0/{parts(made)[0].name}"
    card = (made / "README.md").read_text()
    assert f"resolve/main/{first})" in card and "Ollama refuses files in parts" in card
    assert "--split-max-size 2M" in card and "hf.co/a/b:Q2_K" in card
    assert (made / "Modelfile").read_text().splitlines()[0] == f"FROM ./{WHOLE}"
    listed = dict(line.split("  ")[::-1] for line in (made / "SHA256SUMS").read_text().splitlines())
    for path in parts(made):
        assert listed[f"{STEM}-Q8_0/{path.name}"] == hashlib.sha256(path.read_bytes()).hexdigest()
    entry = json.loads((made / "recipe.json").read_text())["files"][first]
    assert len(entry["others"]) == len(parts(made)) - 1


def test_parts_are_sent_together(made: Path) -> None:
    groups = [[file.name for file in group] for group in in_order(release_files(made, discard))]
    assert [f"{STEM}-Q8_0/{path.name}" for path in parts(made)] in groups


def test_a_second_call_has_nothing_to_do(place: Path, made: Path) -> None:
    done = invoke(*words(place, "2M", "-o", made))
    assert done.exit_code == 0 and "nothing to do" in done.stdout


def test_the_recipe_makes_the_same_parts(place: Path, made: Path, tmp_path: Path) -> None:
    done = invoke(
        "release", place / f"{STEM}-bf16", "--from", made / "recipe.json", "-o", tmp_path, "--quiet"
    )
    assert done.exit_code == 0, done.output
    for path in [*parts(made), made / WHOLE]:
        assert (tmp_path / path.relative_to(made)).read_bytes() == path.read_bytes()


@pytest.mark.slow
def test_where_all_are_split_there_is_no_modelfile(place: Path, made: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(made, tmp_path / "out"))
    done = invoke(*words(place, "1M", "-o", folder, "--quiet"))
    assert done.exit_code == 0, done.output
    assert f"{WHOLE}: is of an earlier release in this folder" in done.stderr
    assert not (folder / "Modelfile").exists() and "Modelfile" not in (folder / "SHA256SUMS").read_text()
    card = (folder / "README.md").read_text()
    assert "there is no Modelfile" in card and "ollama run" not in card


def test_an_export_takes_folders_for_parts(place: Path, tmp_path: Path) -> None:
    model, split = place / f"{STEM}-bf16", {"split_max_size": "2M"}
    (flat,) = plan(model, "Q8_0", tmp_path, **split).files  # type: ignore[arg-type]
    (file,) = plan(model, "Q8_0", tmp_path, split_folders=True, **split).files  # type: ignore[arg-type]
    assert [part.n_bytes for part in flat.parts] == [part.n_bytes for part in file.parts]
    assert flat.path.parent == tmp_path and file.path.parent == tmp_path / f"{STEM}-Q8_0"
    assert ReleaseSettings(model).split_max_size is None
