"""What the command line leaves as its exit status: by the kind of what ended it."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path
from typing import Any

import pytest
from command_line import check_one_line, invoke
from pico import pico_mixtral
from places import ROOT

from gguf_export.commands import exit_codes
from quantize import exceptions


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pico_mixtral(tmp_path_factory.mktemp("models") / "Pico-4x1M-bf16")


@pytest.mark.parametrize(
    ("words", "status"),
    [
        (["-t", "Q9"], 2),
        (["-t", "Q8_0", "--override-kv", "a=b"], 2),
        (["-t", "Q8_0", "--no-such-option"], 2),
        ([], 2),
        (["-t", "Q8_0", "--imatrix", "absent.gguf"], 3),
        (["-t", "Q8_0", "-o", "/dev/null/folder"], 4),
    ],
)
def test_what_was_asked_for_is_told_from_what_is_read_and_written(
    model: Path, words: list[str], status: int
) -> None:
    assert invoke("export", model, *words, "-q").exit_code == status


def test_models_that_cannot_be_read(model: Path, tmp_path: Path) -> None:
    for verb, *words in (["inspect"], ["export", "-t", "Q8_0"], ["quantize", "out.gguf", "Q8_0"]):
        check_one_line(invoke(verb, tmp_path / "absent", *words), "absent", exit_codes.INPUT)
    broken = Path(shutil.copytree(model, tmp_path / "broken"))
    next(broken.glob("*.safetensors")).unlink()
    check_one_line(
        invoke("export", broken, "-t", "Q8_0", "-o", tmp_path / "out"), "safetensors", exit_codes.INPUT
    )
    assert invoke("doctor", broken).exit_code == exit_codes.FINDINGS


def test_a_full_disk(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("gguf_export.files.durable.DurableFile.frame", full)
    done = invoke("export", model, "-t", "Q8_0", "-o", tmp_path, "-q")
    check_one_line(done, "", exit_codes.OUTPUT)


def test_a_defect_keeps_its_traceback(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError("by nobody")

    monkeypatch.setattr("gguf_export.checking.inspect.inspect", broken)
    done = invoke("inspect", model)
    assert done.exit_code == exit_codes.DEFECT and not done.stdout
    first, *_, reason, last = done.stderr.splitlines()
    assert first.startswith("Traceback") and reason == "ZeroDivisionError: by nobody" and "defect" in last


def test_every_error_has_a_status() -> None:
    kinds = [exceptions.MoeGgufError]
    for kind in kinds:
        kinds += kind.__subclasses__()
    found = {kind.__name__: exit_codes.status_of(kind("", "")) for kind in kinds}
    assert set(found.values()) == {
        exit_codes.FINDINGS,
        exit_codes.USAGE,
        exit_codes.INPUT,
        exit_codes.OUTPUT,
    }
    for name, status in found.items():
        is_output = name.startswith("Output") or name in ("NoSpaceError", "UploadError")
        assert (status == exit_codes.OUTPUT) == is_output, name
        assert (status == exit_codes.FINDINGS) == (name == "ChecksumError"), name


def test_the_statuses_are_documented() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    told = " ".join(invoke("--help").stdout.split())
    for status in (0, 1, 2, 3, 4, 70, 130):
        assert f"\n| {status}" in readme and f"{status} " in told
