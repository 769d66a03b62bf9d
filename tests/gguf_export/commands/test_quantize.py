"""A script that calls llama-quantize calls `moe-gguf quantize` with the same arguments, and gets the same files."""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Sequence
from pathlib import Path

import pytest
from command_line import invoke
from places import GOLDEN
from quantized_cases import QUICK, commands, write_sources

DATA = json.loads((GOLDEN / "quantized.json").read_text(encoding="utf-8"))
MADE: dict[str, dict[str, str] | None] = DATA["made"]
FAILING = [line for line, made in MADE.items() if made is None]
PLAIN = [line for line, made in MADE.items() if made is not None and "imatrix" not in line]
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
    assert differences([line for line in MADE if line not in (*FAILING, *QUICK_LINES)], folder) == []


@pytest.mark.parametrize("line", FAILING)
def test_what_llama_quantize_fails_on_is_refused_in_one_line(line: str, folder: Path) -> None:
    before = sorted(folder.iterdir())
    done = invoke("quantize", *shlex.split(line))
    assert done.exit_code in (1, 2), done.output
    errors = [row for row in done.stderr.splitlines() if "rror: " in row]
    assert len(errors) == 1 and "Traceback" not in done.output, done.output
    assert sorted(folder.iterdir()) == before
