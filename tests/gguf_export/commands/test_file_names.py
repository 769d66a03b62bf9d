"""Names that are no UTF-8: they label, escaped, whatever is made of them, and are refused where a file holds them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from command_line import TEXT, check_one_line, invoke
from pico import pico_mixtral
from tokenizer_cases import CASES

from calibration.importance.imatrix_files import load_imatrix
from calibration.text.tokenizer import open_tokenizer
from gguf_export.commands.messages import error_line, switch
from gguf_export.metadata.file_names import lmstudio_path
from gguf_export.metadata.model_keys import model_keys, parse_override
from quantize.containers.untrusted import exact_text, label, printable
from quantize.exceptions import ActivationError, OutputError, RecipeError
from quantize.sources.checkpoint import open_checkpoint
from quantize.sources.gguf_file import GGUFFile

ODD = "\udcff"  # the byte 0xff, as Python holds it
SHORT = ("--ctx", 16, "--chunks", 2, "-q")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, a text and a folder that are called so."""
    made = tmp_path_factory.mktemp("names")
    try:
        (made / f"w{ODD}.txt").write_text(TEXT, encoding="utf-8")
    except (OSError, UnicodeError):
        pytest.skip("this file system has no names but those of its encoding")
    pico_mixtral(made / "model").rename(made / f"P{ODD}-4x1M")
    (made / "model").symlink_to(made / f"P{ODD}-4x1M")
    (made / f"out{ODD}").mkdir()
    return made


def run(*words: Any) -> None:
    done = invoke(*words)
    assert done.exit_code == 0, done.output


def strict(path: Path) -> Any:
    """What a JSON file holds; no reader can choke on half of a surrogate pair."""
    found = json.loads(path.read_text(encoding="utf-8"))
    json.dumps(found, ensure_ascii=False).encode("utf-8")
    return found


@pytest.mark.parametrize("suffix", ["gguf", "dat"])
def test_an_importance_matrix_names_its_text(folder: Path, suffix: str) -> None:
    output = folder / f"i{ODD}.{suffix}"
    text = folder / f"w{ODD}.txt"
    run("imatrix", folder / f"P{ODD}-4x1M", "--text", text, *SHORT, "-o", output)
    imatrix = load_imatrix(output)
    assert imatrix.datasets == [r"w\xff.txt"]
    assert imatrix.file == str(folder / rf"i\xff.{suffix}")
    assert imatrix.metadata()["quantize.imatrix.file"] == rf"i\xff.{suffix}"


def test_an_export_labels_and_is_found_again(folder: Path) -> None:
    model, text, out = folder / f"P{ODD}-4x1M", folder / f"w{ODD}.txt", folder / f"out{ODD}"
    saved = folder / f"saved{ODD}.gguf"
    run("export", model, "-t", "Q8_0", "-o", out, "--text", text, *SHORT, "--save-imatrix", saved)
    (made,) = out.iterdir()
    assert made.name.startswith("P-xff-4x")
    keys = GGUFFile(made).keys
    assert keys["general.name"] == r"P\xff 4x1M"
    assert keys["quantize.imatrix.file"] == r"saved\xff.gguf"
    odd = made.rename(out / f"g{ODD}.gguf")
    run("verify", odd, "--against", model, "--imatrix", saved, "-q")
    told = json.loads(invoke("inspect", odd, "--json").stdout)
    assert told["path"] == str(folder / r"out\xff" / r"g\xff.gguf")
    found = json.loads(invoke("verify", out / f"none{ODD}.gguf", "--json").stdout)
    assert found[0]["place"] == str(folder / r"out\xff" / r"none\xff.gguf")


def test_a_gguf_as_source(folder: Path, tmp_path: Path) -> None:
    odd, text = tmp_path / f"g{ODD}.gguf", folder / f"w{ODD}.txt"
    run("quantize", folder / f"P{ODD}-4x1M", tmp_path / "g.gguf", "BF16", "-q")
    (tmp_path / "g.gguf").rename(odd)
    run("quantize", odd, tmp_path / "copy.gguf", "COPY", "-q")
    assert (tmp_path / "copy.gguf").read_bytes()[:4] == b"GGUF"
    run("export", odd, "-t", "Q8_0", "-o", tmp_path / "out", "-q")
    assert [path.name for path in (tmp_path / "out").iterdir()] == [f"g{ODD}-Q8_0.gguf"]
    run("imatrix", odd, "--text", text, *SHORT, "-o", tmp_path / "i.gguf")
    run("compare", "--base", odd, odd, "--text", text, *SHORT, "--json", tmp_path / "c.json")
    assert strict(tmp_path / "c.json")


def test_reports_of_a_comparison(folder: Path) -> None:
    model, text = folder / f"P{ODD}-4x1M", folder / f"w{ODD}.txt"
    made = {kind: folder / f"c{ODD}.{kind}" for kind in ("json", "csv", "markdown", "html", "svg")}
    outputs = [
        word for kind, path in made.items() for word in (f"--{'plot' if kind == 'svg' else kind}", path)
    ]
    texts = ("--text", text, "--text", f"n{ODD}={text}")
    run("compare", model, "-t", "Q8_0", *texts, *SHORT, *outputs, "--state", folder / f"s{ODD}")
    assert [one["name"] for one in strict(made["json"])["texts"]] == [r"w\xff", r"n\xff"]
    assert strict(made["json"])["base"]["name"] == r"P\xff-4x1M"
    for kind in ("csv", "html"):
        assert r"n\xff" in made[kind].read_text(encoding="utf-8")
    assert "n&#92;xff" in made["markdown"].read_text(encoding="utf-8")
    assert r"P\xff-4x1M" in made["svg"].read_text(encoding="utf-8")


def test_reports_of_errors(folder: Path) -> None:
    model, text = folder / f"P{ODD}-4x1M", folder / f"w{ODD}.txt"
    made = {kind: folder / f"e{ODD}.{kind}" for kind in ("json", "csv", "html")}
    outputs = [word for path in made.values() for word in ("-o", path)]
    run("errors", model, "-t", "Q8_0", "--text", text, *SHORT, "--no-baseline", *outputs)
    report = strict(made["json"])
    assert report["model"] == r"P\xff-4x1M" and r"w\xff.txt: " in report["facts"]["importances fitted on"]
    assert r"w\xff.txt" in made["html"].read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--name", f"a{ODD}b"], r"name a\xffb: is not UTF-8, as texts of a GGUF file are; spell --name in"),
        (["--lmstudio", "--publisher", f"a{ODD}b"], r"publisher a\xffb: is not UTF-8; spell --publisher"),
        (["--override-kv", f"general.author=str:{ODD}"], "a text is UTF-8 without NUL"),
        (["--tensor-type-file", f"none{ODD}"], r"none\xff"),
        (["--imatrix", f"none{ODD}"], r"none\xff"),
    ],
)
def test_what_a_file_would_hold_exactly_is_refused(folder: Path, words: list[str], named: str) -> None:
    out = folder / "refused"
    check_one_line(invoke("export", folder / "model", "-t", "Q8_0", "-o", out, *words), named)
    assert not out.exists()


def test_bytes_that_are_utf8_are_text_in_every_locale(folder: Path) -> None:
    odd = "\udcc3\udca9"  # é, as Python holds it in a locale of ASCII
    assert label(f"a{odd}") == exact_text(f"a{odd}") == "aé"
    keys = {kv.key: kv.value for kv in model_keys(open_checkpoint(folder / "model"), name=f"P{odd}")}
    assert keys["general.name"] == "Pé"
    assert parse_override(f"general.author=str:{odd}").value == "é"
    path = lmstudio_path(Path("root"), f"m{odd}", "model", "file.gguf")
    assert path == Path("root", "mé", "model", "file.gguf")


def test_a_tokenizer_is_opened_whatever_its_folder_is_called(folder: Path) -> None:
    CASES["byte-level"](folder / "byte-level")
    (folder / f"b{ODD}").symlink_to(folder / "byte-level")
    assert len(open_tokenizer(folder / f"b{ODD}").encode("a river"))


@pytest.mark.parametrize("name", ["", "plain", "Ωé日", "a\nb", "\\xff", "a\u202e"])
def test_valid_text_is_its_own_label(name: str) -> None:
    assert label(name) == exact_text(name) == name


@pytest.mark.parametrize(
    ("name", "labelled"),
    [(f"w{ODD}", r"w\xff"), ("\udce2\udc82", r"\xe2\x82"), ("\ud800", r"\ud800"), ("é\udcc3\udca9", "éé")],
)
def test_labels(name: str, labelled: str) -> None:
    assert label(name) == label(Path(name)) == labelled == printable(name)


def test_errors_of_the_library() -> None:
    with pytest.raises(OutputError) as publisher:
        lmstudio_path(Path("root"), ODD, "model", "file.gguf")
    with pytest.raises(RecipeError):
        parse_override(f"general.author=str:{ODD}")
    assert "--publisher" in publisher.value.line(switch)


def test_a_command_that_is_advised_can_be_pasted(tmp_path: Path) -> None:
    model = tmp_path / "model; echo $HOME"
    model.mkdir()
    line = error_line(ActivationError("layer 1", "is not finite", model=str(model)))
    assert line.endswith(f"; moe-gguf doctor '{model}' --full lists what is damaged")
