"""The command line as a user gives it, and what every refusal looks like."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result

from gguf_export.cli import main
from gguf_export.commands.exit_codes import INPUT, OUTPUT, USAGE

TEXT = "a river runs through the small town and the small town knows the river well. " * 12


def invoke(*words: Any) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words])


def check_one_line(done: Result, named: str, status: int | None = None) -> None:
    """The command was refused in one line that names this; with a status, as this kind."""
    assert done.exit_code in ((USAGE, INPUT, OUTPUT) if status is None else (status,)), done.output
    errors = [line for line in done.stderr.splitlines() if line.startswith("moe-gguf: error: ")]
    assert len(errors) == 1
    assert errors[0] == done.stderr.splitlines()[-1]
    assert named in errors[0]
    assert "Traceback" not in done.output


def forward_words(verb: str, model: Path, folder: Path) -> list[Any]:
    """A command that runs a text through the model."""
    (folder / "text.txt").write_text(TEXT, encoding="utf-8")
    text = ["--text", folder / "text.txt", "--ctx", 16, "--quiet"]
    more = {
        "imatrix": ["-o", folder / "m.gguf"],
        "errors": ["-t", "Q8_0", "-o", folder / "errors.json"],
        "compare": ["-t", "Q8_0", "--json", folder / "compare.json"],
        "export": ["-t", "Q8_0", "-o", folder],
    }
    return [verb, model, *text, *more[verb]]
