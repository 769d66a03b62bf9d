"""Files that are there already: left where they are what would be made, refused where they are not, or skipped."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import TEXT, check_one_line, invoke
from pico import pico_mixtral, read_checkpoint, write_checkpoint

from calibration.importance.imatrix import Entry, Imatrix
from calibration.importance.imatrix_files import imatrix_bytes, load_imatrix, save_imatrix
from gguf_export import export
from gguf_export.commands.exit_codes import OUTPUT, USAGE
from quantize.telling import Remark

NAMES = ["Pico-4x1M-Q4_K_M.gguf", "Pico-4x1M-Q8_0.gguf"]


@pytest.fixture(scope="module")
def pico(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "Pico-4x1M-bf16"
    return pico_mixtral(folder, n_embd=256, n_ff=256, n_head=4)


@pytest.fixture
def model(pico: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pico, tmp_path / pico.name))


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    os.utime(path, ns=(10**18, 10**18))
    return path


def matrix(path: Path, value: float) -> Path:
    sums = np.linspace(1, value, 4 * 256, dtype=np.float32).reshape(4, 256)
    entries = {
        f"blk.{bid}.ffn_{part}_exps.weight": Entry(sums, np.full(4, 500))
        for bid in range(2)
        for part in ("up", "gate")
    }
    save_imatrix(path, Imatrix(entries, ["a.txt"], 4))
    return path


def times(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}


def words(model: Path, out: Path, *more: Any) -> list[Any]:
    return ["export", model, "-t", "Q4_K_M", "-t", "Q8_0", "-o", out, "-j", 1, *more]


def test_the_same_files_are_left(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    more = ["--imatrix", matrix(tmp_path / "m.gguf", 3)]
    assert invoke(*words(model, out, *more)).exit_code == 0
    made = times(out)
    again = invoke(*words(model, out, *more))
    assert (again.exit_code, again.stdout) == (0, "nothing to do: all 2 files are there\n")
    assert times(out) == made and sorted(made) == NAMES
    assert [f"{out / name}: is there, and is what would be made" in again.stderr for name in NAMES]
    quiet = invoke(*words(model, out, *more, "-q"))
    assert (quiet.exit_code, quiet.stdout) == (0, "")
    one_more = invoke(*words(model, out, *more, "-t", "Q6_K"))
    assert one_more.exit_code == 0 and "1 file made, 2 files left as they were" in one_more.stdout
    assert {name: at for name, at in times(out).items() if name in made} == made


def rescaled(model: Path) -> None:
    """A fine-tune: the same names and shapes, one expert of one matrix a little different."""
    found = read_checkpoint(model)
    found["model.layers.1.block_sparse_moe.experts.2.w1.weight"] ^= 1
    for old in model.glob("model*"):
        old.unlink()
    write_checkpoint(model, found, json.loads((model / "config.json").read_text()))


CHANGES: list[tuple[Callable[[Path, Path], Any], list[Any], str]] = [
    (lambda model, _: rescaled(model), [], "holds other weights in blk.1.ffn_gate_exps.weight, expert 2"),
    (lambda _, out: matrix(out.parent / "m.gguf", 90), [], "holds other weights in blk.0.ffn_"),
    (lambda *_: None, ["--prior", 1000], "lacks the key quantize.imatrix.prior"),
    (
        lambda *_: None,
        ["--override-kv", "general.name=str:x"],
        "has another general.name: Pico 4x1M Bf16, not x",
    ),
    (lambda *_: None, ["--tensor-type", "attn_k=q8_0"], "attn_k.weight as Q4_K, not Q8_0"),
    (lambda _, out: os.truncate(out / NAMES[0], 5000), [], "cannot be read as a GGUF file"),
    (lambda _, out: os.truncate(out / NAMES[0], (out / NAMES[0]).stat().st_size + 32), [], "bytes, not"),
    (lambda _, out: (out / NAMES[0]).write_bytes(b"precious"), [], "cannot be read as a GGUF file"),
]


@pytest.mark.parametrize(
    ("change", "more", "told"), CHANGES, ids=[told.replace(" ", "-") for *_, told in CHANGES]
)
def test_other_files_are_refused_with_what_differs(
    model: Path, tmp_path: Path, change: Callable[[Path, Path], Any], more: list[Any], told: str
) -> None:
    out = tmp_path / "out"
    importances = ["--imatrix", matrix(tmp_path / "m.gguf", 3)]
    assert invoke(*words(model, out, *importances)).exit_code == 0
    change(model, out)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    done = invoke(*words(model, out, *importances, *more))
    check_one_line(done, f"{NAMES[0]}: exists already, and ", OUTPUT)
    assert told in done.stderr and "--force" in done.stderr
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert invoke(*words(model, out, *importances, *more, "--force", "-q")).exit_code == 0
    assert invoke(*words(model, out, *importances, *more)).stdout.startswith("nothing to do")


def test_what_exists_is_skipped(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / NAMES[0]).write_bytes(b"precious")
    done = invoke(*words(model, out, "--skip-existing", "--json", tmp_path / "j.json"))
    assert done.exit_code == 0, done.output
    assert (out / NAMES[0]).read_bytes() == b"precious" and "is left as it is" in done.stderr
    assert "1 file made, 1 file left as they were" in done.stdout
    found = json.loads((tmp_path / "j.json").read_text(encoding="utf-8"))
    assert [(Path(file["path"]).name, file["state"]) for file in found["files"]] == [
        (NAMES[0], "left"),
        (NAMES[1], "made"),
    ]
    assert sorted(path.name for path in out.iterdir()) == NAMES
    refused = invoke(*words(model, out, "--skip-existing", "--force"))
    assert refused.exit_code == USAGE


def test_an_imatrix_that_exists_is_skipped(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"precious")
    for more in ([], ["--merge"]):
        done = invoke("imatrix", tmp_path / "absent", "-o", tmp_path / "m.gguf", "--skip-existing", *more)
        assert (done.exit_code, done.stdout) == (0, "") and "is left as it is" in done.stderr
    assert (tmp_path / "m.gguf").read_bytes() == b"precious"


def test_a_text_need_not_pass_again(model: Path, text: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    more = ["--text", text, "--ctx", 16]
    planned = json.loads(invoke(*words(model, out, *more, "--dry-run", "--json", "-")).stdout)
    assert not out.exists()
    first = invoke(*words(model, out, *more))
    assert first.exit_code == 0, first.output
    kept = out / "Pico-4x1M-imatrix.gguf"
    assert sorted(times(out)) == [*NAMES, kept.name] and f"importances: {kept}" in first.stdout
    assert planned["imatrix"] == {"path": str(kept), "n_bytes": kept.stat().st_size}
    assert imatrix_bytes(load_imatrix(kept)) == kept.stat().st_size
    again = invoke(*words(model, out, *more))
    assert (again.exit_code, again.stdout) == (0, "nothing to do: all 2 files are there\n")
    assert "calculating" not in again.stderr
    (out / NAMES[1]).unlink()  # that one alone is made again
    made = times(out)[NAMES[0]]
    assert invoke(*words(model, out, *more)).exit_code == 0
    assert times(out)[NAMES[0]] == made and NAMES[1] in times(out)


def test_importances_and_texts_that_changed(model: Path, text: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    more = ["--text", text, "--ctx", 16, "-q"]
    assert invoke(*words(model, out, *more)).exit_code == 0
    kept = out / "Pico-4x1M-imatrix.gguf"
    check_one_line(invoke(*words(model, out, *more, "--chunks", 2)), "chunks_count", OUTPUT)
    others = ["export", model, "-t", "Q6_K", "-o", out, *more, "--chunks", 2]
    check_one_line(invoke(*others), "imatrix.gguf: exists already, and is of another text", OUTPUT)
    assert invoke(*others, "--no-save-imatrix").exit_code == 0
    os.utime(text)  # as who changes a word
    check_one_line(invoke(*words(model, out, *more)), "text.txt was changed after it was made", OUTPUT)
    assert invoke(*words(model, out, *more, "--force")).exit_code == 0
    kept.unlink()  # the files are left, and the text passes for the importances alone
    made = times(out)
    os.utime(text, ns=(10**18, 10**18))
    assert invoke(*words(model, out, *more)).exit_code == 0
    assert kept.exists() and {name: at for name, at in times(out).items() if name in made} == made


def test_the_library_says_what_it_left(model: Path, tmp_path: Path) -> None:
    notes: list[Remark] = []
    first = export(model, ["Q8_0"], tmp_path / "out")
    second = export(model, ["Q8_0"], tmp_path / "out", note=notes.append)
    assert first.standing == () and second.standing == (second.files[0].path,)
    assert [note.message for note in notes] == ["is there, and is what would be made"]
