"""`--trace`: a file that shows what each thread did, whatever ended the run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from command_line import check_one_line, forward_words, invoke
from pico import pico_mixtral

from gguf_export.commands.exit_codes import INTERRUPTED, OUTPUT, USAGE
from gguf_export.files.durable import DurableFile
from gguf_export.writing.open_files import OpenFiles


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pico_mixtral(tmp_path_factory.mktemp("models") / "Pico-4x1M-bf16")


def names(path: Path) -> set[str]:
    trace = json.loads(path.read_text(encoding="utf-8"))
    spans = [event for event in trace["traceEvents"] if event["ph"] == "X"]
    rows = {event["tid"] for event in trace["traceEvents"] if event["ph"] == "M"}
    assert all(event["dur"] >= 0 and event["ts"] >= 0 and event["tid"] in rows for event in spans)
    return {event["name"] for event in spans}


def test_an_export_shows_its_parts(model: Path, tmp_path: Path) -> None:
    trace = tmp_path / "trace.json"
    trace.write_text("an older one", encoding="utf-8")
    done = invoke("export", model, "-t", "Q8_0", "-o", tmp_path / "out", "--quiet", "--trace", trace)
    assert done.exit_code == 0, done.output
    assert names(trace) >= {
        "start", "import", "plan", "open model", "keys", "fingerprint", "kernels",
        "read", "check", "encode", "checksum", "write", "fsync", "journal", "finish files", "name files",
    }  # fmt: skip
    assert not (tmp_path / "trace.json.partial").exists()


@pytest.mark.parametrize("verb", ["imatrix", "errors", "compare", "export"])
def test_a_pass_over_text_shows_its_stages(verb: str, model: Path, tmp_path: Path) -> None:
    done = invoke(*forward_words(verb, model, tmp_path), "--trace", tmp_path / "trace.json")
    assert done.exit_code == 0, done.output
    assert names(tmp_path / "trace.json") >= {"start", "import", "reading", "products", "attention"}


def test_a_verification_has_a_trace(model: Path, tmp_path: Path) -> None:
    assert invoke("export", model, "-t", "Q8_0", "-o", tmp_path, "-q").exit_code == 0
    (file,) = tmp_path.glob("*.gguf")
    done = invoke("verify", file, "--against", model, "-q", "--trace", tmp_path / "trace.json")
    assert done.exit_code == 0, done.output
    assert names(tmp_path / "trace.json") >= {"start", "import", "kernels", "unit"}


@pytest.mark.parametrize(
    ("error", "status"), [(KeyboardInterrupt(), INTERRUPTED), (OSError(5, "broken"), OUTPUT)]
)
def test_a_run_that_ends_early_leaves_what_was_recorded(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, status: int
) -> None:
    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(
        *((OpenFiles, "finish", fail) if status == INTERRUPTED else (DurableFile, "_put", fail))
    )
    done = invoke("export", model, "-t", "Q8_0", "-o", tmp_path / "out", "-q", "--trace", tmp_path / "t.json")
    assert done.exit_code == status, done.output
    assert names(tmp_path / "t.json") >= {"start", "plan"}


def test_a_place_that_cannot_be_written_is_refused_before_the_work(model: Path, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    for trace in (tmp_path / "nowhere" / "t.json", tmp_path / "folder", model / "config.json"):
        done = invoke("export", model, "-t", "Q8_0", "-o", tmp_path / "out", "--trace", trace)
        check_one_line(done, str(trace), OUTPUT)
    assert not (tmp_path / "out").exists()


def test_a_file_that_the_command_names_already_is_refused(model: Path, tmp_path: Path) -> None:
    place = tmp_path / "x.json"
    done = invoke("export", model, "-t", "Q8_0", "-o", tmp_path, "--json", place, "--trace", place)
    assert done.exit_code == USAGE and "named elsewhere" in done.output


def test_what_the_run_has_written_is_not_replaced(model: Path, tmp_path: Path) -> None:
    place = tmp_path / "Pico-4x1M-Q8_0.gguf"
    done = invoke("export", model, "-t", "Q8_0", "-o", tmp_path, "-q", "--trace", place)
    check_one_line(done, str(place), OUTPUT)
    assert place.read_bytes()[:4] == b"GGUF"


def test_a_trace_that_cannot_be_written_hides_no_error(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trace = tmp_path / "t.json"

    def fail(*_: Any) -> None:
        trace.mkdir()
        raise KeyboardInterrupt

    monkeypatch.setattr(OpenFiles, "finish", fail)
    done = invoke("export", model, "-t", "Q8_0", "-o", tmp_path / "out", "-q", "--trace", trace)
    assert done.exit_code == INTERRUPTED
    assert (
        f"moe-gguf: error: {trace}: " in done.stderr and done.stderr.splitlines()[-1] == "moe-gguf: stopped"
    )
