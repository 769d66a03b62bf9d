"""What `compare` shows and writes: names of models, plots, figures that come back, speed."""

from __future__ import annotations

import json
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from command_line import check_one_line, invoke
from pico import pico_mixtral

from gguf_export.comparing import speed
from gguf_export.comparing.models import ModelChoice
from gguf_export.comparing.results import Speed, SpeedTest
from gguf_export.comparing.speed import measure_speed, speed_test
from gguf_export.writing.export import prepare, run
from quantize.exceptions import ChoiceError
from quantize.recipes.ftypes import ftype
from quantize.recipes.recipe import Recipe
from quantize.sources.checkpoint import open_checkpoint
from quantize.telling import Remark

TEXT = "a river runs through the small town and the small town knows the river well. "


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint, a text, and files of two uploaders by the same name."""
    made = tmp_path_factory.mktemp("outputs")
    checkpoint = open_checkpoint(pico_mixtral(made / "pico"))
    for uploader, name in (("a", "Q8_0"), ("b", "Q4_0")):
        (made / uploader).mkdir()
        (file,) = run(prepare(checkpoint, [Recipe(ftype(name))], made / uploader), jobs=1).files
        file.path.rename(made / uploader / "Pico.gguf")
    (made / "text.txt").write_text(TEXT * 12, encoding="utf-8")
    return made


def words(folder: Path, *more: object) -> list[object]:
    text = ["--text", folder / "text.txt", "--ctx", 16, "--chunks", 2]
    return ["compare", folder / "pico", *text, *more]


def test_models_have_names(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "c.json"
    named = (f"mine={folder}/a/Pico.gguf", folder / "b" / "Pico.gguf")
    done = invoke(*words(folder, *named, "--json", out))
    assert done.exit_code == 0, done.output
    found = json.loads(out.read_text(encoding="utf-8"))
    assert [(model["label"], model["name"], model["is_named"]) for model in found["models"]] == [
        ("mine", "a/Pico.gguf", True),
        ("Pico", "b/Pico.gguf", False),
    ]
    assert str(folder) not in out.read_text(encoding="utf-8")
    assert "mine" in done.stdout and "Verdict by mean KLD: below 0.001" in done.stdout


def test_names_are_unique(folder: Path) -> None:
    twins = (f"x={folder}/a/Pico.gguf", f"x={folder}/b/Pico.gguf")
    check_one_line(
        invoke(*words(folder, *twins)), "two models are called 'x'; name them apart, as in NAME=FILE"
    )
    alike = (f"Pico={folder}/a/Pico.gguf", folder / "b" / "Pico.gguf")
    check_one_line(invoke(*words(folder, *alike)), "two models are called 'Pico'; name them apart")


def test_names_of_models_are_read_as_those_of_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a=b.gguf").touch()
    (tmp_path / "c.gguf").touch()
    choice = ModelChoice.of("a=b.gguf", "x=y=c.gguf", "n=absent.gguf", Path("z=c.gguf"))
    assert choice.paths == (Path("a=b.gguf"), Path("c.gguf"), Path("absent.gguf"), Path("z=c.gguf"))
    assert choice.names == {Path("c.gguf"): "x=y", Path("absent.gguf"): "n"}
    with pytest.raises(ChoiceError, match="names no file, wherever it is cut"):
        ModelChoice.of("x=y=z.gguf")


def test_figures_come_back_without_the_model(folder: Path, tmp_path: Path) -> None:
    parts = []
    for uploader in ("a", "b"):
        parts.append(tmp_path / f"{uploader}.json")
        done = invoke(*words(folder, folder / uploader / "Pico.gguf", "--json", parts[-1], "-q"))
        assert done.exit_code == 0, done.output
    (tmp_path / "again").mkdir()
    shutil.copy(parts[0], tmp_path / "again" / "a.json")
    sources = [word for part in (*parts, tmp_path / "again" / "a.json") for word in ("--from", part)]
    plots = ["--plot", tmp_path / "q.svg", "--plot", tmp_path / "q.png"]
    done = invoke("compare", *sources, *plots, "--html", tmp_path / "p.html", "--json", tmp_path / "all.json")
    assert done.exit_code == 0, done.output
    merged = json.loads((tmp_path / "all.json").read_text(encoding="utf-8"))
    assert [model["label"] for model in merged["models"]] == ["Pico (a)", "Pico (b)"]  # the same file once
    assert (tmp_path / "q.png").read_bytes().startswith(b"\x89PNG") and "<svg" in (
        tmp_path / "q.svg"
    ).read_text()
    assert "2 models beside pico" in (tmp_path / "p.html").read_text(encoding="utf-8")
    assert "written: " in done.stdout and "verdict" in done.stdout
    check_one_line(invoke("compare", *sources, *plots), "q.svg: exists already; pass --force")
    check_one_line(invoke("compare", *sources, "--csv", parts[0], "--force"), "is read, too")


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ([], "give MODEL and GGUF files, or with --from"),
        (["pico", "--from", "a.json"], "leave MODEL and GGUF files out"),
        (["--from", "a.json", "--text", "b"], "--text means nothing beside --from"),
        (["--from", "a.json", "--speed"], "--speed means nothing beside --from"),
        (["--from", "a.json", "--plot", "x.pdf"], "--plot writes .svg and .png"),
    ],
)
def test_usage(more: list[str], said: str) -> None:
    done = invoke("compare", *more)
    assert done.exit_code == 2 and said in done.stderr


# -- speed


def test_without_xllamacpp_the_remedy_is_said(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "program", lambda: None)
    done = invoke(*words(folder, folder / "a" / "Pico.gguf", "--speed"))
    check_one_line(done, 'xllamacpp, which is not installed; pip install "moe-gguf[release]"')


def test_speed_is_in_the_reports(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "speed_test", lambda: SpeedTest("xllamacpp 1.2", 3, 512, 64))
    monkeypatch.setattr(speed, "measure_speed", lambda path, test, note: Speed(1234.0, 5.67))
    outputs = ["--json", tmp_path / "c.json", "--csv", tmp_path / "c.csv", "--html", tmp_path / "c.html"]
    done = invoke(*words(folder, folder / "a" / "Pico.gguf", "-t", "Q4_0", "--speed", *outputs))
    assert done.exit_code == 0, done.output
    assert "1,234" in done.stdout and "5.67" in done.stdout and "xllamacpp 1.2, 3 threads" in done.stdout
    models = json.loads((tmp_path / "c.json").read_text(encoding="utf-8"))["models"]
    assert [model["speed"] for model in models] == [
        {"pp": 1234.0, "tg": 5.67},
        None,
    ]  # a round trip has no file
    assert "1234" in (tmp_path / "c.csv").read_text(encoding="utf-8")
    assert "tg t/s" in (tmp_path / "c.html").read_text(encoding="utf-8")


@pytest.mark.slow
def test_speed_is_measured_in_another_process(folder: Path) -> None:
    if find_spec("xllamacpp") is None:
        pytest.skip("xllamacpp is not installed")
    before = "xllamacpp" in sys.modules
    test = speed_test()
    found = measure_speed(folder / "a" / "Pico.gguf", SpeedTest(test.program, 1, 32, 4))
    assert found is not None and found.pp > 0 and found.tg > 0
    assert ("xllamacpp" in sys.modules) == before
    told: list[Remark] = []
    assert measure_speed(folder / "text.txt", test, told.append) is None
    assert "its speed is not known: llama.cpp could not run it" in str(told[0])
