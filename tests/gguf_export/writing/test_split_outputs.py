"""Outputs in parts: llama.cpp's own bytes, and the manners of whole files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command_line import TEXT, check_one_line, invoke
from part_cases import CUTS, KEPT, SPLITS, cut, groups_of, hashes, write_source
from pico import pico_mixtral
from places import GOLDEN

from gguf_export import export, plan
from gguf_export.files import durable as durable_file
from gguf_export.writing.sink import Sink
from quantize.containers.gguf import read_container
from quantize.exceptions import NoSpaceError, OutputError, OutputExistsError, RecipeError
from quantize.sources.gguf_file import GGUFFile
from quantize.telling import Remark

EXPECTED = json.loads((GOLDEN / "parts.json").read_text(encoding="utf-8"))
SETTINGS: dict[str, dict[str, Any]] = {
    "tensors": {"split_max_tensors": 7},
    "one part": {"split_max_tensors": 1000},
    "size": {"split_max_size": "1M"},
}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_source(tmp_path_factory.mktemp("source") / "Parts-BF16.gguf")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pico_mixtral(tmp_path_factory.mktemp("models") / "Pico-4x1M")


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# -- bytes


@pytest.mark.parametrize("case", SPLITS)
def test_parts_are_those_of_llama_gguf_split(source: Path, tmp_path: Path, case: str) -> None:
    made = export(source, "Q4_K_M", tmp_path, **SETTINGS[case])
    assert hashes(tmp_path) == EXPECTED["split"][case]
    (file,) = made.files
    assert [part.path for part in file.parts] == sorted(tmp_path.iterdir())
    assert [part.n_bytes for part in file.parts] == [part.path.stat().st_size for part in file.parts]
    assert file.path == file.parts[0].path


@pytest.mark.parametrize("case", CUTS)
def test_parts_that_are_kept_are_those_of_llama_quantize(source: Path, tmp_path: Path, case: str) -> None:
    names = list(read_container(source).tensors)
    first = cut(source, tmp_path / "in", groups_of(names, case))
    assert hashes(tmp_path / "in") == EXPECTED["source"][case]
    for ftype in KEPT:
        export(first, ftype, tmp_path / ftype, keep_split=True)
        assert hashes(tmp_path / ftype) == EXPECTED["kept"][f"{case} {ftype}"]


def test_a_source_in_parts_gives_the_file_of_the_whole_one(source: Path, tmp_path: Path) -> None:
    names = list(read_container(source).tensors)
    first = cut(source, tmp_path / "in", groups_of(names, "none first"))
    for model, folder in ((source, "one"), (first, "parts")):
        export(model, ["Q4_K_M", "Q8_0"], tmp_path / folder)
    assert content(tmp_path / "one") == content(tmp_path / "parts")
    for model, folder in ((source, "kept"), (first, "cut")):
        export(model, "Q8_0", tmp_path / folder, split_max_tensors=4)
    assert content(tmp_path / "kept") == content(tmp_path / "cut")


def test_a_file_in_one_part_is_kept_without_keys_of_parts(source: Path, tmp_path: Path) -> None:
    """As llama-quantize --keep-split leaves it; the order of its tensors is the source's."""
    (file,) = export(source, "Q8_0", tmp_path, keep_split=True).files
    assert file.path.name == "Parts-Q8_0-00001-of-00001.gguf"
    container = read_container(file.path)
    assert not [key for key in container.keys if key.startswith("split.")]
    assert list(container.tensors) == list(read_container(source).tensors)


def test_parts_of_a_checkpoint_are_its_file(checkpoint: Path, tmp_path: Path) -> None:
    (whole,) = export(checkpoint, "Q4_0", tmp_path / "whole").files
    (file,) = export(checkpoint, "Q4_0", tmp_path / "parts", split_max_tensors=5).files
    assert len(file.parts) > 2 and file.bpw == whole.bpw
    one, joined = GGUFFile(whole.path), GGUFFile(file.path)
    assert list(joined.specs()) == list(one.specs())
    assert {key: value for key, value in joined.keys.items() if not key.startswith("split.")} == one.keys
    for spec in one.specs():
        for xid in range(spec.n_matrix):
            assert (joined.read_blocks(spec, xid) == one.read_blocks(spec, xid)).all()


# -- what cannot be


FAULTS: list[tuple[list[Any], str]] = [
    (["--split-max-size", "4"], "such as 500M or 4G; give --split-max-size as a whole number and M or G"),
    (["--split-max-size", "1.5G"], "size '1.5G': is none such as"),
    (["--split-max-size", "0M"], "size '0M': is none such as"),
    (["--split-max-size", "-1M"], "size '-1M': is none such as"),
    (["--split-max-size", "1K"], "size '1K': is none such as"),
    (["--split-max-size", "1M", "--split-max-tensors", "3"], "another way to split; leave --split-max-size out"),
    (["--split-max-tensors", "3", "--keep-split"], "another way to split; leave --split-max-tensors out"),
]  # fmt: skip


@pytest.mark.parametrize(("words", "named"), FAULTS)
def test_a_split_that_means_nothing(source: Path, tmp_path: Path, words: list[Any], named: str) -> None:
    check_one_line(invoke("export", source, "-t", "Q8_0", "-o", tmp_path / "out", *words), named)
    assert not (tmp_path / "out").exists()


def test_a_part_smaller_than_the_first_tensor(tmp_path: Path) -> None:
    """llama-gguf-split refuses it, too; a later tensor that is too large has a part of its own."""
    model = pico_mixtral(tmp_path / "Pico", n_vocab=9000, n_layer=1)
    done = invoke("export", model, "-t", "F16", "-o", tmp_path / "out", "--split-max-size", "1M")
    check_one_line(
        done, "output.weight: takes 1152000 bytes, more than a part may have; give a larger --split-max-size"
    )


def test_a_checkpoint_has_no_parts_to_keep(checkpoint: Path, tmp_path: Path) -> None:
    done = invoke("export", checkpoint, "-t", "Q8_0", "-o", tmp_path / "out", "--keep-split")
    check_one_line(done, "is a checkpoint, whose shards are no parts of a GGUF file; give --split-max-size")


def test_no_part_replaces_one_that_is_read(source: Path, tmp_path: Path) -> None:
    names = list(read_container(source).tensors)
    first = cut(source, tmp_path, groups_of(names, "five"))
    before = content(tmp_path)
    done = invoke("export", first, "-t", "BF16", "-o", tmp_path, "--keep-split", "--force")
    check_one_line(done, "is read, too")
    assert content(tmp_path) == before


@pytest.mark.parametrize("verb", ["export", "inspect", "compare", "imatrix", "errors"])
def test_a_later_part_is_refused_by_each_verb_in_one_line(source: Path, tmp_path: Path, verb: str) -> None:
    """`inspect` looks at the part, and here cannot find out what model it is of."""
    names = list(read_container(source).tensors)
    part = sorted(cut(source, tmp_path, groups_of(names, "five")).parent.iterdir())[1]
    (tmp_path / "Parts-BF16-00001-of-00006.gguf").unlink()
    (tmp_path / "text.txt").write_text("a text of some words. " * 20)
    text = ["--text", tmp_path / "text.txt"]
    more: dict[str, list[Any]] = {
        "export": ["-t", "Q8_0", "-o", tmp_path],
        "compare": [*text, "--base", part],
        "imatrix": [*text, "-o", tmp_path / "i.gguf"],
        "errors": [*text, "-t", "Q8_0", "-o", tmp_path / "e.json"],
    }
    check_one_line(invoke(verb, part, *more.get(verb, [])), "part 2 of 6 of a model")


# -- manners of whole files


def test_the_plan_names_all_parts(source: Path, tmp_path: Path) -> None:
    (planned,) = plan(source, "Q4_K_M", tmp_path, split_max_tensors=7).files
    (made,) = export(source, "Q4_K_M", tmp_path, split_max_tensors=7).files
    assert planned == made
    assert len(made.tensors) == 30 and [part.tensors[0].offset for part in made.parts] == [0] * 5
    shown = invoke("export", source, "-t", "Q4_K_M", "-o", tmp_path, "--split-max-tensors", 7, "--dry-run")
    assert all(part.path.name in shown.output.replace("\n", "") for part in made.parts)
    assert "in 5 parts, " in shown.output


def test_a_remark_on_a_file_in_parts_is_one(tmp_path: Path) -> None:
    """Not one for each part."""
    model = pico_mixtral(tmp_path / "Pico")
    told: list[Remark] = []
    export(model, "Q4_K_M", tmp_path / "out", split_max_tensors=3, note=told.append)
    assert len([remark for remark in told if "fall back" in remark.message]) == 1


def test_files_that_exist_are_refused(source: Path, tmp_path: Path) -> None:
    export(source, "Q8_0", tmp_path, split_max_tensors=9)
    before = content(tmp_path)
    with pytest.raises(
        OutputExistsError, match=r"00001-of-00004\.gguf: exists already, and has another general"
    ):
        export(source, "Q8_0", tmp_path, split_max_tensors=9, override_kv=["general.name=str:x"])
    assert len(export(source, "Q8_0", tmp_path, split_max_tensors=9).standing) == 4
    (tmp_path / "Parts-Q8_0-00003-of-00004.gguf").unlink()
    assert len(export(source, "Q8_0", tmp_path, split_max_tensors=9).standing) == 3
    assert content(tmp_path) == before
    export(source, "Q8_0", tmp_path, split_max_tensors=9, force=True)
    assert content(tmp_path) == before


def test_space_is_asked_for_all_parts(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (planned,) = plan(source, "Q8_0", tmp_path, split_max_tensors=9).files
    real = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: real._replace(free=planned.n_bytes - 1))
    with pytest.raises(NoSpaceError):
        export(source, "Q8_0", tmp_path, split_max_tensors=9)


class StoppedError(Exception):
    """Stands for whatever ends a run."""


def failing_after(monkeypatch: pytest.MonkeyPatch, name: str, n: int) -> Callable[[], None]:
    """Let the call after `n` others of a method of `Sink` fail; returns what lets it be."""
    original, seen = getattr(Sink, name), []

    def method(self: Sink, *args: Any) -> Any:
        seen.append(1)
        if len(seen) > n:
            raise StoppedError
        return original(self, *args)

    monkeypatch.setattr(Sink, name, method)
    return lambda: monkeypatch.setattr(Sink, name, original)


@pytest.mark.parametrize("keeps", [False, True])
@pytest.mark.parametrize(("name", "n"), [("write", 0), ("write", 13), ("commit", 1), ("commit", 6)])
def test_a_run_that_was_stopped_goes_on(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, n: int, keeps: bool
) -> None:
    """Also where only some parts have their names, and where one of them holds no tensors."""
    monkeypatch.setattr(durable_file, "SYNC_SECONDS", 0.0)
    options: dict[str, Any] = {"keep_split": True} if keeps else {"split_max_tensors": 7}
    names = list(read_container(source).tensors)
    first = cut(source, tmp_path / "in", groups_of(names, "none first")) if keeps else source
    export(first, ["Q8_0", "Q4_0"], tmp_path / "whole", **options)
    let_be = failing_after(monkeypatch, name, n)
    with pytest.raises(StoppedError):
        export(first, ["Q8_0", "Q4_0"], tmp_path / "out", jobs=1, **options)
    let_be()
    if name == "write":
        assert not list((tmp_path / "out").glob("*.gguf"))
    told: list[Remark] = []
    made = export(first, ["Q8_0", "Q4_0"], tmp_path / "out", note=told.append, **options)
    assert content(tmp_path / "out") == content(tmp_path / "whole")
    if name == "commit":
        assert made.bytes_read == 0
    elif n:
        assert any("continued" in str(remark) for remark in told)


def test_another_way_to_split_begins_afresh(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A part of the same name, of other tensors."""
    monkeypatch.setattr(durable_file, "SYNC_SECONDS", 0.0)
    let_be = failing_after(monkeypatch, "write", 20)
    with pytest.raises(StoppedError):
        export(source, "Q8_0", tmp_path / "out", split_max_tensors=8, jobs=1)
    let_be()
    told: list[Remark] = []
    export(source, "Q8_0", tmp_path / "out", split_max_tensors=9, note=told.append)
    assert any("begun afresh, because the metadata" in str(remark) for remark in told)
    export(source, "Q8_0", tmp_path / "whole", split_max_tensors=9)
    assert content(tmp_path / "out") == content(tmp_path / "whole")


def test_two_types_of_one_name_are_refused(source: Path, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="two of the files would have the same name"):
        export(source, ["Q8_0", "Q8_0"], tmp_path, split_max_tensors=9)
    with pytest.raises(RecipeError, match="give split_max_tensors 1 or more"):
        export(source, "Q8_0", tmp_path, split_max_tensors=0)


# -- parts as a source of every pass


@pytest.fixture(scope="module")
def both(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a file, whole and in parts, and a text."""
    folder = tmp_path_factory.mktemp("both")
    export(checkpoint, "Q8_0", folder)
    export(checkpoint, "Q8_0", folder, split_max_tensors=9)
    (folder / "text.txt").write_text(TEXT, encoding="utf-8")
    return folder


def test_parts_are_compared_as_one_file(both: Path, tmp_path: Path) -> None:
    """Also where all files of a folder are given."""
    whole, *parts = sorted(both.glob("*.gguf"), key=lambda path: (len(path.name), path.name))
    words = ["compare", "--base", whole, *parts, "--text", both / "text.txt", "--ctx", 16, "-q"]
    done = invoke(*words, "--json", tmp_path / "c.json")
    assert done.exit_code == 0, done.output
    (model,) = json.loads((tmp_path / "c.json").read_text())["models"]
    assert model["label"] == "Q8_0"
    assert model["n_bytes"] == sum(path.stat().st_size for path in parts)
    assert model["texts"]["text"]["ppl_ratio"] == 1.0
    replaced = invoke(*words, "--json", parts[1], "--force")
    check_one_line(replaced, "is read, too")


def test_importances_of_parts_are_those_of_the_file(both: Path, tmp_path: Path) -> None:
    whole, first, *_ = sorted(both.glob("*.gguf"), key=lambda path: (len(path.name), path.name))
    for name, model in (("whole", whole), ("parts", first)):
        words = ["--text", both / "text.txt", "--ctx", 16, "-q"]
        done = invoke("imatrix", model, *words, "-o", tmp_path / f"{name}.gguf")
        assert done.exit_code == 0, done.output
    assert (tmp_path / "whole.gguf").read_bytes() == (tmp_path / "parts.gguf").read_bytes()


def test_a_text_weighs_parts_on_the_way(both: Path, tmp_path: Path) -> None:
    """From a file in parts to files in parts."""
    whole, first, *_ = sorted(both.glob("*.gguf"), key=lambda path: (len(path.name), path.name))
    for name, model in (("whole", whole), ("parts", first)):
        words = ["--text", both / "text.txt", "--ctx", 16, "--allow-requantize", "--name", "x", "-q"]
        out = tmp_path / name
        done = invoke("export", model, "-t", "Q4_0", "-o", out, *words, "--split-max-tensors", 9)
        assert done.exit_code == 0, done.output
    assert content(tmp_path / "whole") == content(tmp_path / "parts") and len(content(tmp_path / "whole")) > 2
