"""Importance matrices on the command line: shown, merged, and held against the model that they are given for."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import check_one_line, invoke
from imatrix_inputs import write_inputs
from pico import pico_mixtral

from calibration.importance.imatrix import Entry, Imatrix
from calibration.importance.imatrix_files import load_imatrix, save_imatrix
from calibration.importance.merging import merged
from gguf_export import merge_imatrices
from gguf_export.checking.imatrix_facts import imatrix_facts, starved_rows
from gguf_export.writing.export import prepare, run
from quantize.recipes.ftypes import ftype
from quantize.recipes.recipe import Recipe
from quantize.sources.checkpoint import open_checkpoint
from quantize.telling import Remark


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture
def inputs(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "inputs"))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pico_mixtral(tmp_path_factory.mktemp("models") / "Pico-4x1M-bf16")


def matrix_of(model: Path, value: float | None = None, *, more: Sequence[str] = (), bids: int = 2) -> Imatrix:
    """Importances of the matrices in some layers of a model: all of one value, or each another; and of other names."""
    rng = np.random.default_rng(3)
    entries = {}
    for spec in open_checkpoint(model).specs():
        if len(spec.shape) > 1 and spec.bid is not None and spec.bid < bids:
            sums = rng.uniform(1, 9, (spec.n_matrix, spec.n_per_row)).astype(np.float32)
            if value is not None:
                sums[:] = value
            entries[spec.name] = Entry(sums, np.full(spec.n_matrix, 200))
    for name in more:
        entries[name] = Entry(np.ones((1, 8), np.float32), np.array([200]))
    return Imatrix(entries, ["text"], 1)


# -- inspect


def test_inspect_shows_an_importance_matrix(inputs: Path) -> None:
    done = invoke("inspect", inputs / "b.gguf")
    assert done.exit_code == 0, done.output
    for told in (
        "importance matrix, GGUF form",
        "b.txt, c d.txt",
        "of 128 tokens",
        "CosSim",
        "starved experts",
    ):
        assert told in done.stdout
    assert "ffn_down_exps" not in done.stdout
    listed = invoke("inspect", inputs / "b.gguf", "--tensors").stdout
    assert "ffn_down_exps" in listed and "entropy" in listed and len(listed) > 2 * len(done.stdout)


def test_inspect_tells_programs_all_of_an_importance_matrix(inputs: Path) -> None:
    told = json.loads(invoke("inspect", inputs / "a.gguf", "--json").stdout)
    assert (told["kind"], told["legacy"], told["is_zero"]) == ("imatrix", False, False)
    assert (told["datasets"], told["chunk_count"], told["chunk_size"]) == (["a.txt"], 4, 512)
    assert [layer["bid"] for layer in told["layers"]] == [0, 1, 2, 10]
    starved = {(one["name"], one["xid"]) for one in told["starved"] if one["n_tokens"] == 0}
    assert ("blk.10.ffn_up_exps.weight", 2) in starved
    (up,) = (one for one in told["tensors"] if one["name"] == "blk.10.ffn_up_exps.weight")
    assert [expert["statistics"] is None for expert in up["experts"]] == [False, False, True, False]


@pytest.mark.parametrize("name", ["l.dat", "bare.dat"])
def test_inspect_says_what_a_legacy_file_does_not_hold(inputs: Path, name: str) -> None:
    done = invoke("inspect", inputs / name)
    assert done.exit_code == 0, done.output
    assert (
        "legacy form" in done.stdout and done.stdout.count("not known: the legacy form holds no counts") == 2
    )
    assert json.loads(invoke("inspect", inputs / name, "--json").stdout)["starved"] == []


def test_inspect_lists_the_starved_experts_in_order(tmp_path: Path) -> None:
    names = [f"blk.{bid}.ffn_{word}_exps.weight" for bid in (10, 2) for word in ("up", "down")]
    names.append("strange_exps.weight")
    entry = Entry(np.ones((3, 4), np.float32), np.array([7, 0, 100]))
    save_imatrix(tmp_path / "m.gguf", Imatrix(dict.fromkeys(names, entry)))
    facts = imatrix_facts(tmp_path / "m.gguf")
    places = ("strange_exps.weight", "layer 2", "layer 10")
    assert starved_rows(facts) == [(place, *what) for what in (("1", "0"), ("0", "7")) for place in places]
    assert (
        "6 that fewer than 100 tokens reached, 3 of them none"
        in invoke("inspect", tmp_path / "m.gguf").stdout
    )


def test_inspect_says_that_all_is_zero(model: Path, tmp_path: Path) -> None:
    save_imatrix(tmp_path / "m.gguf", matrix_of(model, 0))
    done = invoke("inspect", tmp_path / "m.gguf", "--tensors")
    assert done.exit_code == 0 and "all zero: this matrix weighs nothing" in done.stdout
    told = json.loads(invoke("inspect", tmp_path / "m.gguf", "--json").stdout)
    assert told["is_zero"] and len(told["zero"]) == told["n_entries"]
    assert {tensor["cossim"] for tensor in told["tensors"]} == {0, None}


def test_inspect_names_what_no_token_reached(tmp_path: Path) -> None:
    entries = {
        "output.weight": Entry(np.ones((1, 4), np.float32), np.array([3])),
        "blk.0.attn_q.weight": Entry(np.zeros((1, 4), np.float32), np.array([0])),
    }
    save_imatrix(tmp_path / "m.gguf", Imatrix(entries))
    assert "1 tensors saw no token" in invoke("inspect", tmp_path / "m.gguf").stdout


def test_inspect_refuses_a_damaged_importance_matrix(inputs: Path, tmp_path: Path) -> None:
    for name in ("a.gguf", "l.dat"):
        (tmp_path / name).write_bytes((inputs / name).read_bytes()[:-700])
        check_one_line(invoke("inspect", tmp_path / name), name)
    save_imatrix(tmp_path / "n.gguf", Imatrix({"a": Entry(np.full((1, 2), -1, np.float32), np.array([1]))}))
    check_one_line(invoke("inspect", tmp_path / "n.gguf"), "negative")


# -- merge


@pytest.mark.parametrize("output", ["m.gguf", "m.dat"])
def test_merge_writes_the_sum(inputs: Path, tmp_path: Path, output: str) -> None:
    files = [inputs / name for name in ("a.gguf", "c.gguf", "l.dat")]
    done = invoke("imatrix", "--merge", *files, "-o", tmp_path / output)
    assert done.exit_code == 0, done.output
    assert "from 3 files" in done.stdout
    save_imatrix(tmp_path / "wanted", merged(map(load_imatrix, files)), legacy=output == "m.dat")
    assert (tmp_path / output).read_bytes() == (tmp_path / "wanted").read_bytes()
    assert invoke("imatrix", "--merge", *files, "-o", tmp_path / "quiet.gguf", "-q").stdout == ""


def test_one_file_is_converted(inputs: Path, tmp_path: Path) -> None:
    assert invoke("imatrix", "--merge", inputs / "bare.dat", "-o", tmp_path / "m.gguf").exit_code == 0
    found, legacy = load_imatrix(tmp_path / "m.gguf"), load_imatrix(inputs / "bare.dat")
    assert not found.legacy and found.datasets == [""]  # llama-imatrix writes an empty list, and gguf-py none
    for name, entry in legacy.entries.items():
        assert found.entries[name].counts.tolist() == [int(entry.counts[0]) * 512]
        np.testing.assert_array_equal(found.importance(name), legacy.importance(name))


def test_merge_remarks_on_other_chunks_and_lacking_tensors(inputs: Path, tmp_path: Path) -> None:
    words = ["imatrix", "--merge", inputs / "b.gguf", inputs / "a.gguf", "-o", tmp_path / "m.gguf", "--force"]
    told = invoke(*words).stderr
    assert (
        "b.gguf: was counted in chunks of 128 tokens, the result is in chunks of 512; --ctx 128 keeps them"
        in told
    )
    assert "4 of 17 tensors are not in all of the files, such as blk.10" in told
    told = invoke(*words, "--ctx", 128).stderr
    assert "b.gguf: was counted" not in told and "a.gguf: was counted in chunks of 512" in told
    assert load_imatrix(tmp_path / "m.gguf").chunk_size == 128


def test_merge_remarks_on_a_file_that_counts_twice(inputs: Path, tmp_path: Path) -> None:
    """As in llama-imatrix, it does."""
    (tmp_path / "link.gguf").symlink_to(inputs / "a.gguf")
    files = [inputs / "a.gguf", tmp_path / "link.gguf", inputs / "c.gguf"]
    done = invoke("imatrix", "--merge", *files, "-o", tmp_path / "m.gguf")
    assert done.exit_code == 0 and done.stderr.count("a.gguf: is given 2 times, and counts as often") == 1
    assert load_imatrix(tmp_path / "m.gguf").datasets == ["a.txt", "a.txt", "c.txt"]


def test_merge_replaces_nothing(inputs: Path, tmp_path: Path) -> None:
    files = [inputs / "a.gguf", inputs / "b.gguf"]
    before = [file.read_bytes() for file in files]
    (tmp_path / "second.gguf").hardlink_to(files[1])
    for output in (*files, tmp_path / "second.gguf"):
        check_one_line(invoke("imatrix", "--merge", *files, "-o", output, "--force"), "read")
    assert [file.read_bytes() for file in files] == before
    (tmp_path / "m.gguf").write_bytes(b"kept")
    check_one_line(invoke("imatrix", "--merge", *files, "-o", tmp_path / "m.gguf"), "--force")
    assert (tmp_path / "m.gguf").read_bytes() == b"kept"
    assert invoke("imatrix", "--merge", *files, "-o", tmp_path / "m.gguf", "--force").exit_code == 0


@pytest.mark.parametrize("other", ["wide.gguf", "eight.gguf", "absent.gguf", "model.gguf", "torn.dat"])
def test_what_cannot_be_merged_is_one_line(inputs: Path, tmp_path: Path, other: str) -> None:
    (inputs / "model.gguf").write_bytes(b"GGUF" + bytes(40))
    (inputs / "torn.dat").write_bytes((inputs / "l.dat").read_bytes()[:100])
    done = invoke("imatrix", "--merge", inputs / "a.gguf", inputs / other, "-o", tmp_path / "m.gguf")
    check_one_line(done, other)
    assert [path.name for path in tmp_path.iterdir()] == ["inputs"]


@pytest.mark.parametrize(
    "words",
    [
        ["--text", "x"],
        ["--prompts", "x"],
        ["--chunks", 3],
        ["--parse-special"],
        ["--process-output"],
        ["--restart"],
        ["--scratch", "x"],
        ["--hidden", "bf16"],
        ["--device", "cpu"],
    ],
)
def test_options_of_a_text_mean_nothing_beside_merge(inputs: Path, tmp_path: Path, words: list[Any]) -> None:
    done = invoke("imatrix", "--merge", inputs / "a.gguf", "-o", tmp_path / "m.gguf", *words)
    assert done.exit_code == 2 and f"{words[0]} means nothing beside --merge" in done.stderr
    assert not (tmp_path / "m.gguf").exists()


def test_several_models_are_no_model(inputs: Path, tmp_path: Path) -> None:
    done = invoke("imatrix", inputs / "a.gguf", inputs / "b.gguf", "-o", tmp_path / "m.gguf", "--text", "x")
    assert done.exit_code == 2 and "--merge" in done.stderr
    done = invoke("imatrix", inputs / "a.gguf", "-o", tmp_path / "m.gguf", "--ctx", 64)
    assert done.exit_code == 2 and "--ctx means nothing without --text" in done.stderr


def test_the_library_merges_without_writing(inputs: Path, tmp_path: Path) -> None:
    remarks: list[Remark] = []
    found = merge_imatrices([inputs / "a.gguf", str(inputs / "c.gguf")], note=remarks.append)
    assert found.datasets == ["a.txt", "c.txt"] and len(remarks) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["inputs"]


# -- an importance matrix and the model that it is given for


def words_of(verb: str, model: Path, tmp_path: Path, imatrix: Path) -> list[Any]:
    if verb == "export":
        return ["export", model, "-t", "Q4_0", "-o", tmp_path / "out", "--imatrix", imatrix]
    if verb == "compare":
        (tmp_path / "text.txt").write_text("the small town knows the river well. " * 12, encoding="utf-8")
        words = ["--text", tmp_path / "text.txt", "--ctx", 16, "--chunks", 2]
        return ["compare", model, "-t", "Q4_0", *words, "--imatrix", imatrix]
    checkpoint = open_checkpoint(model)
    made = run(prepare(checkpoint, [Recipe(ftype("Q8_0"))], tmp_path / "verified"))
    return ["verify", made.files[0].path, "--against", model, "--imatrix", imatrix]


@pytest.mark.parametrize("verb", ["export", "compare", "verify"])
def test_an_imatrix_of_another_model_is_refused_before_the_work(
    model: Path, tmp_path: Path, verb: str
) -> None:
    imatrix = Imatrix(
        {f"blk.{bid}.ffn_up.weight": Entry(np.ones((1, 64), np.float32), np.array([9])) for bid in (0, 1)}
    )
    save_imatrix(tmp_path / "m.gguf", imatrix)
    done = invoke(*words_of(verb, model, tmp_path, tmp_path / "m.gguf"))
    check_one_line(done, "m.gguf: none of its 2 entries is of a tensor of this model: blk.0.ffn_up.weight")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("verb", ["export", "compare", "verify"])
def test_entries_of_layers_that_the_model_has_not_are_remarked_on(
    model: Path, tmp_path: Path, verb: str
) -> None:
    save_imatrix(tmp_path / "m.gguf", matrix_of(model, more=["blk.2.attn_q.weight", "blk.3.attn_q.weight"]))
    done = invoke(*words_of(verb, model, tmp_path, tmp_path / "m.gguf"))
    assert done.exit_code == 0, done.output
    assert (
        "2 of its 18 entries are of tensors that the model has not, and ignored: blk.2.attn_q.weight"
        in done.output
    )


@pytest.mark.parametrize("verb", ["export", "compare"])
@pytest.mark.parametrize(
    ("value", "told"),
    [(0, "nothing but zeros: it weighs nothing"), (5, "all importances of a row are equal"), (None, "")],
)
def test_importances_that_weigh_nothing_are_remarked_on(
    model: Path, tmp_path: Path, verb: str, value: float | None, told: str
) -> None:
    save_imatrix(tmp_path / "m.gguf", matrix_of(model, value))
    done = invoke(*words_of(verb, model, tmp_path, tmp_path / "m.gguf"), "-q")
    assert done.exit_code == 0, done.output
    assert told in done.stderr and ("weighs nothing" in done.stderr) == bool(told)


def test_tensors_of_zeros_are_named(model: Path, tmp_path: Path) -> None:
    imatrix = matrix_of(model)
    imatrix.entries["blk.1.attn_k.weight"].sums[:] = 0
    save_imatrix(tmp_path / "m.gguf", imatrix)
    told = invoke(*words_of("export", model, tmp_path, tmp_path / "m.gguf"), "--dry-run").stderr
    assert "holds only zeros for 1 tensors: blk.1.attn_k.weight" in told
