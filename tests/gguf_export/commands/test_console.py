"""What the command line shows while it works, and its tables: on a terminal, in a pipe."""

from __future__ import annotations

import io
import re
import sys

import pytest

from gguf_export.commands.console import ProgressView, plain_table, print_table
from quantize.telling import Progress


def test_a_pipe_gets_plain_columns(capsys: pytest.CaptureFixture[str]) -> None:
    print_table("a title", ("name", ">size", "note"), [("Ω\x1b", "9", "x"), ("longer", "1,234", "")])
    assert capsys.readouterr().out.splitlines() == [
        "a title",
        "name     size  note",
        r"Ω\x1b       9  x",
        "longer  1,234",
        "",
    ]
    print_table("", ("", ""), [("kind", "gguf"), ("name", "x")])
    assert capsys.readouterr().out.splitlines() == ["kind  gguf", "name  x", ""]


def test_what_an_encoding_lacks_is_escaped_before_columns_are_measured() -> None:
    assert plain_table("", ("a", ">b"), [("Ω", "1"), ("x", "2")], "ascii") == [
        "a       b",
        r"\u03a9  1",
        "x       2",
        "",
    ]


def test_a_moment_is_told_once(capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressView() as view:
        for _ in range(2):
            view(Progress("calculating", 6912, 6912, "tokens"))
    assert capsys.readouterr().err.count("calculating") == 1


def test_a_stage_may_begin_once_more(capsys: pytest.CaptureFixture[str]) -> None:
    """Of several files each has its lines."""
    with ProgressView() as view:
        for _ in range(2):
            for done in (1, 5, 9):
                view(Progress("checking numbers", done, 9, "tensors"))
    lines = [line.partition(" of")[0] for line in capsys.readouterr().err.splitlines()]
    assert lines == ["checking numbers: 1", "checking numbers: 9"] * 2


class Terminal(io.TextIOWrapper):
    def isatty(self) -> bool:
        return True


def test_bars_leave_room_for_what_a_terminal_echoes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A ^C behind a line that fills the terminal goes to the next, and the lines above would be drawn twice."""
    shown = io.BytesIO()
    monkeypatch.setattr(sys, "stderr", Terminal(shown, encoding="utf-8"))
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm")
    stages = (
        "checking what is done",
        "compiling kernels",
        "judging: calculating",
        "comparing with the checkpoint",
    )
    with ProgressView() as view:
        for stage in stages:
            view(Progress(stage, 10**9, 10**11))
    sys.stderr.flush()
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.getvalue().decode())
    lines = [line for line in re.split(r"[\r\n]+", plain) if line.startswith(stages)]
    assert {line.partition("  ")[0].rstrip(" ━╺╸") for line in lines} >= set(stages[:1])
    assert max(map(len, map(str.rstrip, lines))) < 79


def test_a_terminal_gets_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", Terminal(shown, encoding="utf-8"))
    print_table("", ("name", ">size"), [("x", "1")])
    sys.stdout.flush()
    assert "─" in shown.getvalue().decode()
