"""Signals that ask a run to end, sent to real processes that wait at a gate: what is done is kept, all else is gone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import pytest
from command_line import TEXT, invoke
from pico import pico_mixtral

from gguf_export.commands.signals import Stopped, orderly_stops

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals are POSIX")

CHILD = """
    import os, signal, sys, time

    def gate(name):
        os.write(1, name.encode() + b"\\n")
        os.read(0, 1)  # until the test has done what it wants to

    from gguf_export.commands import signals
    from gguf_export.files import durable
    from gguf_export.files.durable import DurableFile
    from gguf_export.writing import state_file
    from gguf_export.writing.open_files import OpenFiles

    signals.PATIENCE = 1e9
    durable.SYNC_SECONDS = state_file.KEEP_SECONDS = 0.0
    state_file.KEEP_SHARE = float("inf")
    for number in (signal.SIGINT, signal.SIGHUP):  # whatever the tests run in
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    write, seen = OpenFiles.write, []

    def written(*args):
        seen.append(1)
        if len(seen) == 25:
            gate("working")
        return write(*args)

    OpenFiles.write = written
    {more}
    from gguf_export.cli import main
    main()
"""

PASSING = """
    from calibration.forward.forward_pass import ForwardPass
    feed_forward = ForwardPass.feed_forward
    def fed(self, bid):
        if bid == 1:
            gate("working")
        return feed_forward(self, bid)
    ForwardPass.feed_forward = fed
"""

CLEANING = """
    sync = DurableFile.sync
    def synced(self):
        gate("cleaning")
        return sync(self)
    DurableFile.sync = synced
"""


class Child:
    """A command in a process of its own, which stops at gates."""

    def __init__(self, words: list[Any], more: str = "", stderr: int | None = None) -> None:
        script = textwrap.dedent(CHILD).replace("{more}", textwrap.dedent(more))
        self.process = subprocess.Popen(
            [sys.executable, "-c", script, *map(str, words)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE if stderr is None else stderr,
        )

    def wait_at(self, gate: str) -> None:
        assert self._file(self.process.stdout).readline().decode() == f"{gate}\n"

    def go_on(self) -> None:
        stdin = self._file(self.process.stdin)
        stdin.write(b".")
        stdin.flush()

    def send(self, *names: str) -> None:
        for name in names:
            self.process.send_signal(signal.Signals[name])

    def end(self) -> tuple[int, str]:
        """The exit status, and what was said."""
        _, said = self.process.communicate(timeout=300)
        return self.process.returncode, (said or b"").decode()

    @staticmethod
    def _file(file: IO[bytes] | None) -> IO[bytes]:
        assert file is not None
        return file


@contextmanager
def child(*words: Any, **options: Any) -> Iterator[Child]:
    made = Child(list(words), **options)
    try:
        yield made
    finally:
        made.process.kill()
        made.process.communicate()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pico_mixtral(tmp_path_factory.mktemp("models") / "Pico-4x1M-bf16")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


def export_words(model: Path, out: Path) -> list[Any]:
    return ["export", model, "-t", "Q8_0", "-t", "F16", "-o", out, "-j", 2]


def pass_words(verb: str, model: Path, out: Path, scratch: Path) -> list[Any]:
    """A command that runs a text through the model, with its hidden states in files."""
    scratch.mkdir()
    text = scratch.with_name("text.txt")
    text.write_text(TEXT, encoding="utf-8")
    more = {
        "imatrix": ["-o", out / "m.gguf"],
        "export": ["-t", "Q8_0", "-o", out],
        "compare": ["-t", "Q8_0", "--json", out / "c.json"],
        "errors": ["-t", "Q8_0", "-o", out / "e.json"],
    }
    return [verb, model, *more[verb], "--text", text, "--ctx", 16, "--chunks", 5, "--scratch", scratch]


def suffixes(folder: Path) -> list[str]:
    return sorted(path.suffix for path in folder.iterdir())


@pytest.mark.parametrize("name", ["SIGTERM", pytest.param("SIGHUP", marks=pytest.mark.slow)])
def test_an_export_keeps_what_is_done(model: Path, out: Path, name: str) -> None:
    with child(*export_words(model, out)) as run:
        run.wait_at("working")
        run.send(name)
        run.go_on()
        status, said = run.end()
    assert status == 128 + signal.Signals[name], said
    assert said.splitlines()[-1] == f"moe-gguf: stopped by {name}"
    assert said.count("the same command goes on") == 2 and "Traceback" not in said
    assert suffixes(out) == [".journal", ".journal", ".partial", ".partial"]
    done = invoke(*export_words(model, out))
    assert done.exit_code == 0 and done.stderr.count("continued") == 2
    assert suffixes(out) == [".gguf", ".gguf"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("verb", "left"),
    [
        ("imatrix", [".state"]),
        ("export", [".journal", ".partial", ".state"]),
        ("compare", [".state"]),
        ("errors", []),
    ],
)
def test_a_pass_leaves_no_lock_and_no_scratch_file(
    model: Path, out: Path, tmp_path: Path, verb: str, left: list[str]
) -> None:
    scratch = tmp_path / "scratch"
    with child(*pass_words(verb, model, out, scratch), more=PASSING) as run:
        run.wait_at("working")
        assert not list(scratch.iterdir())  # not even while it works
        run.send("SIGTERM")
        status, said = run.end()
    assert status == 143, said
    assert said.splitlines()[-1] == "moe-gguf: stopped by SIGTERM" and "Traceback" not in said
    assert ("the same command goes on" in said) == bool(left)
    assert suffixes(out) == left
    assert not list(scratch.iterdir())


@pytest.mark.slow
def test_nohup_is_obeyed(model: Path, out: Path) -> None:
    ignoring = "signal.signal(signal.SIGHUP, signal.SIG_IGN)"
    with child(*export_words(model, out), more=ignoring) as run:
        run.wait_at("working")
        run.send("SIGHUP")
        run.go_on()
        status, said = run.end()
    assert status == 0, said
    assert suffixes(out) == [".gguf", ".gguf"]


@pytest.mark.slow
@pytest.mark.parametrize("first", ["SIGTERM", "SIGINT"])
def test_further_signals_do_not_break_the_end(model: Path, out: Path, first: str) -> None:
    """A terminal that closes sends several, and a user presses Ctrl-C twice."""
    with child(*export_words(model, out), more=CLEANING) as run:
        run.wait_at("working")
        run.send(first)
        run.go_on()
        for _ in range(2):  # each of the files
            run.wait_at("cleaning")
            run.send("SIGTERM", "SIGHUP", "SIGINT")
            run.go_on()
        status, said = run.end()
    assert status == (143 if first == "SIGTERM" else 130), said
    assert said.splitlines()[-1] == "moe-gguf: stopped" + " by SIGTERM" * (first == "SIGTERM")
    assert said.count("the same command goes on") == 2 and "Traceback" not in said
    assert suffixes(out) == [".journal", ".journal", ".partial", ".partial"]


@pytest.mark.slow
def test_a_terminal_that_is_gone(model: Path, out: Path, tmp_path: Path) -> None:
    """What cannot be said must not break what is done."""
    import pty

    ours, theirs = pty.openpty()
    with child(*pass_words("export", model, out, tmp_path / "scratch"), more=PASSING, stderr=theirs) as run:
        os.close(theirs)
        run.wait_at("working")
        os.close(ours)
        run.send("SIGHUP")
        run.go_on()
        status, _ = run.end()
    assert status == 129
    assert suffixes(out) == [".journal", ".partial", ".state"]


def handlers() -> list[Any]:
    return [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]


def test_handlers_are_those_of_before_and_strangers_stay() -> None:
    def own(*_: Any) -> None:
        pass

    before = handlers()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, own)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    try:
        outside = handlers()
        with orderly_stops():
            interrupt, term, hangup = handlers()
            assert interrupt is hangup and term is own
            with pytest.raises(Stopped) as stopped:
                signal.raise_signal(signal.SIGHUP)
            assert (stopped.value.name, stopped.value.status) == ("SIGHUP", 129)
            signal.raise_signal(signal.SIGINT)  # soon after: the same wish
        assert handlers() == outside
        assert invoke("inspect", "no such file").exit_code == 3
        assert handlers() == outside
    finally:
        for number, handler in zip((signal.SIGINT, signal.SIGTERM, signal.SIGHUP), before, strict=True):
            signal.signal(number, handler)


def test_a_signal_that_was_lost_is_not_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gguf_export.commands.signals.PATIENCE", 0.0)
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        with orderly_stops():
            for _ in range(2):
                with pytest.raises(Stopped):
                    signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)


def test_another_thread_leaves_signals_alone() -> None:
    before, seen = handlers(), []

    def called() -> None:
        with orderly_stops():
            seen.append(handlers())

    thread = threading.Thread(target=called)
    thread.start()
    thread.join()
    assert seen == [before]
