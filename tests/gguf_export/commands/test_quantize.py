"""A script that calls llama-quantize calls `moe-gguf quantize` with the same arguments, and gets the same files."""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
from command_line import check_one_line, invoke
from gguf_files import Info
from places import DEMO_MODEL, GOLDEN
from quantized_cases import QUICK, commands, write_sources

from gguf_export.commands.llama_quantize import Words, parse_words
from gguf_export.writing.header import header
from quantize.containers.keys import KeyValue
from quantize.sources.gguf_file import GGUFFile
from quantize.tensors import QType, TensorSpec

DATA = json.loads((GOLDEN / "quantized.json").read_text(encoding="utf-8"))
MADE: dict[str, dict[str, str] | None] = DATA["made"]
FAILING = [line for line, made in MADE.items() if made is None]
PLAIN = [line for line, made in MADE.items() if made is not None and "imatrix" not in line]
SPELLED = "--imatrix ./dense.imatrix --pure dense.gguf out.gguf Q2_K_S"
"""llama-quantize stores the path of the importances as it is spelled; here their name alone goes into a file."""
QUICK_LINES = [line for line in PLAIN if line.split()[-1] in QUICK]


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("quantized")
    write_sources(folder)
    return folder


@pytest.fixture
def folder(sources: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(sources)
    return sources


def differences(lines: Sequence[str], folder: Path) -> list[str]:
    """The command lines whose files are not llama-quantize's, each with what was made."""
    found = []
    for line in lines:
        done = invoke("quantize", *shlex.split(line), "--quiet")
        new = [path for path in folder.iterdir() if path.name not in DATA["sources"]]
        made = {path.name: sha256(path) for path in new}
        for path in new:
            path.unlink()
        if done.exit_code or made != MADE[line]:
            found.append(f"{line}: {done.stderr if done.exit_code else made}")
    return found


def test_the_sources_are_those_of_the_golden_data(sources: Path) -> None:
    assert {path.name: sha256(path) for path in sources.iterdir()} == DATA["sources"]
    assert list(MADE) == commands()


def test_a_script_gets_the_same_files(folder: Path) -> None:
    assert len(QUICK_LINES) > 30
    assert differences(QUICK_LINES, folder) == []


@pytest.mark.slow
def test_every_command_line_gets_the_same_file(folder: Path) -> None:
    same = [line for line in MADE if line not in (*FAILING, *QUICK_LINES, SPELLED)]
    assert differences(same, folder) == []


def test_the_folder_of_importances_is_not_told(folder: Path) -> None:
    assert SPELLED in MADE
    made = []
    for line in (SPELLED, SPELLED.replace("./", "")):
        assert invoke("quantize", *shlex.split(line), "--quiet").exit_code == 0
        made.append(sha256(folder / "out.gguf"))
        assert GGUFFile(folder / "out.gguf").keys["quantize.imatrix.file"] == "dense.imatrix"
        (folder / "out.gguf").unlink()
    assert made[0] == made[1]


@pytest.mark.parametrize("line", FAILING)
def test_what_llama_quantize_fails_on_is_refused_in_one_line(line: str, folder: Path) -> None:
    before = sorted(folder.iterdir())
    done = invoke("quantize", *shlex.split(line))
    assert done.exit_code in (2, 3, 4), done.output
    errors = [row for row in done.stderr.splitlines() if "rror: " in row]
    assert len(errors) == 1 and "Traceback" not in done.output, done.output
    assert sorted(folder.iterdir()) == before


def test_a_file_that_exists_is_replaced_and_it_is_said(folder: Path) -> None:
    (folder / "out.gguf").write_bytes(b"old")
    done = invoke("quantize", "dense.gguf", "out.gguf", "q8_0")
    assert done.exit_code == 0, done.output
    assert {"out.gguf": sha256(folder / "out.gguf")} == MADE["dense.gguf out.gguf Q8_0"]
    (folder / "out.gguf").unlink()
    assert [row for row in done.stderr.splitlines() if "is replaced" in row] == [
        "out.gguf: was there, and is replaced"
    ]
    done = invoke("quantize", "dense.gguf", "dense.gguf", "q8_0")
    assert done.exit_code == 4 and "is replaced" not in done.stderr


@pytest.mark.parametrize("target", ["precious", "dense.gguf"])
def test_nothing_is_written_through_a_link(folder: Path, tmp_path: Path, target: str) -> None:
    """The link is replaced, not what it leads to, even if that is the model."""
    (tmp_path / "precious").write_bytes(b"precious")
    out = tmp_path / "out.gguf"
    out.symlink_to(tmp_path / target if target == "precious" else folder / target)
    done = invoke("quantize", "dense.gguf", out, "Q8_0")
    assert done.exit_code == 0, done.output
    assert (tmp_path / "precious").read_bytes() == b"precious"
    assert sha256(folder / "dense.gguf") == DATA["sources"]["dense.gguf"]
    assert not out.is_symlink() and {"out.gguf": sha256(out)} == MADE["dense.gguf out.gguf Q8_0"]


@pytest.mark.parametrize("kind", ["hard link", "imatrix"])
def test_what_is_read_is_never_replaced(folder: Path, tmp_path: Path, kind: str) -> None:
    out = tmp_path / "out.gguf"
    if kind == "hard link":
        out.hardlink_to(folder / "dense.gguf")
    else:
        out = folder / "dense.imatrix"
    done = invoke("quantize", "--imatrix", "dense.imatrix", "dense.gguf", out, "Q8_0")
    check_one_line(done, "read")
    assert sha256(folder / "dense.gguf") == DATA["sources"]["dense.gguf"]
    assert sha256(folder / "dense.imatrix") == DATA["sources"]["dense.imatrix"]


def test_a_dry_run_writes_nothing(folder: Path) -> None:
    before = sorted(folder.iterdir())
    done = invoke("quantize", "--dry-run", "--prune-layers", "0", "dense.gguf", "Q8_0")
    assert done.exit_code == 0 and "blk.1.attn_k.weight" in done.stdout and "blk.2" not in done.stdout
    assert sorted(folder.iterdir()) == before


def test_a_dry_run_plans_without_the_importances_that_a_type_needs(tmp_path: Path) -> None:
    """The plan is printed with a remark; the file itself is refused."""
    for words in (("--dry-run",), ()):
        done = invoke("quantize", *words, DEMO_MODEL, tmp_path / "out.gguf", "IQ2_XXS")
        told = [line for line in done.stderr.splitlines() if "which needs importances" in line]
        assert len(told) == 1 and "give an importance matrix" in told[0]
        assert (done.exit_code, "bits per weight" in done.stdout) == ((0, True) if words else (2, False))
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_is_taken_too(tmp_path: Path) -> None:
    """Its file lies beside the folder, as that of a file beside the file."""
    (tmp_path / "model").symlink_to(DEMO_MODEL)
    done = invoke("quantize", "--quiet", tmp_path / "model", "15")
    assert done.exit_code == 0, done.output
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["ggml-model-Q4_K.gguf"]
    done = invoke("export", "--quiet", tmp_path / "model", "-t", "Q4_K_M", "-o", tmp_path / "exported")
    assert done.exit_code == 0, done.output
    (exported,) = (tmp_path / "exported").iterdir()
    assert (tmp_path / "ggml-model-Q4_K.gguf").read_bytes() == exported.read_bytes()


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["dense.gguf", "NVFP4"], "unknown file type 'NVFP4'"),
        (["dense.gguf", "39"], "unknown file type 'NVFP4'"),
        (["dense.gguf", "out.gguf", "nvfp4"], "unknown file type 'NVFP4'"),
    ],
)
def test_types_that_cannot_be_made_are_no_names_of_files(folder: Path, words: list[str], named: str) -> None:
    check_one_line(invoke("quantize", *words), named)


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (
            ["--include-weights", "attn", "dense.gguf", "Q8_0"],
            "--include-weights means nothing without --imatrix",
        ),
        (
            ["--exclude-weights", "attn", "dense.gguf", "Q8_0"],
            "--exclude-weights means nothing without --imatrix",
        ),
        (["dense.gguf"], "TYPE is missing"),
        ([], "Missing argument"),
        (["dense.gguf", "out.gguf"], "'out.gguf' is no type"),
        (["dense.gguf", "out.gguf", "Q8_0", "2", "3"], "nothing may stand behind NTHREADS"),
    ],
)
def test_words_that_mean_nothing(folder: Path, words: list[str], named: str) -> None:
    done = invoke("quantize", *words)
    assert done.exit_code == 2 and named in done.stderr, done.output


@pytest.mark.parametrize(
    ("words", "out", "ftype", "n_thread"),
    [
        (("m.gguf", "q4_k"), "ggml-model-Q4_K.gguf", "Q4_K", None),
        (("./a/m.gguf", "Q4_K_M", "4"), "a/ggml-model-Q4_K_M.gguf", "Q4_K_M", 4),
        (("/a/m.gguf", "0"), "/a/ggml-model-F32.gguf", "F32", None),
        (("m.gguf", "17x", "0"), "ggml-model-Q5_K.gguf", "Q5_K", None),
        (("m.gguf", "copy"), "ggml-model-COPY.gguf", "COPY", None),
        (("m.gguf", "mxfp4_moe"), "ggml-model-MXFP4_MOE.gguf", "MXFP4_MOE", None),
        (("m.gguf", "o.gguf", "iq4_xs", "+3"), "o.gguf", "IQ4_XS", 3),
        (("m.gguf", "41"), "ggml-model-Q2_0.gguf", "Q2_0", None),
        (("m.gguf", "29", "2"), "ggml-model-IQ2_M.gguf", "IQ2_M", 2),
        (("m.gguf", "4", "q8_0"), "4", "Q8_0", None),
    ],
)
def test_words_are_taken_as_llama_quantize_takes_them(
    words: tuple[str, ...], out: str, ftype: str, n_thread: int | None
) -> None:
    assert parse_words(words) == Words(words[0], Path(out), ftype, n_thread)


def test_names_that_would_do_harm_are_escaped(tmp_path: Path) -> None:
    spec = TensorSpec("\x1b[31mred_norm.weight", (8,), QType.F32)
    wide = TensorSpec("\x1b[31mrows.weight", (4, 24), QType.F32)
    keys = [KeyValue.text("general.architecture", "\x1b[31m")]
    infos = [Info(spec=spec, qtype=QType.F32, offset=0), Info(spec=wide, qtype=QType.F32, offset=32)]
    content = header(keys, SimpleNamespace(tensors=infos)) + bytes(32 + 4 * 4 * 24)  # type: ignore[arg-type]
    (tmp_path / "odd.gguf").write_bytes(content)
    for more in (["--dry-run"], ["--quiet"]):
        done = invoke("quantize", *more, "--prune-layers", "1", tmp_path / "odd.gguf", "Q4_K_M")
        assert done.exit_code == 0 and "\x1b[31m" not in done.output, done.output
