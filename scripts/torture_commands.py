"""The command line in a process of its own, what may become of it, and what the next run must make good."""

from __future__ import annotations

import faulthandler
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from torture_cases import PassCase

from gguf_export.cli import main

PATIENCE = 120.0  # seconds, after which a command hangs


class Command:
    """The command line in a process of its own, forked from this one: its exit status and what a shell would see."""

    def __init__(self, words: Sequence[str | Path], log: Path) -> None:
        self.words, self.log = [str(word) for word in words], log
        sys.stdout.flush()
        self.pid = os.fork()
        if self.pid == 0:
            self._become()

    def _become(self) -> None:
        handle = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        faulthandler.register(signal.SIGUSR1, file=handle)
        code = 70
        try:
            main(self.words, prog_name="moe-gguf")
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        except BaseException:
            sys.excepthook(*sys.exc_info())
        for stream in (sys.stdout, sys.stderr):
            with suppress(Exception):
                stream.flush()
        os._exit(code)

    def send(self, number: int) -> None:
        """Send a signal; nothing happens where the process has ended."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def wait(self) -> int:
        """The exit status, negative for a process that a signal ended.

        Raises:
            AssertionError: it does not end.
        """
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.005)
        self.send(signal.SIGUSR1)  # where all threads stand goes into the log
        time.sleep(1)
        self.send(signal.SIGKILL)
        os.waitpid(self.pid, 0)
        raise AssertionError(f"hangs: {' '.join(self.words)}\n{self.said()}")

    def said(self) -> str:
        """What it printed on both streams."""
        return self.log.read_text(errors="replace")


def command(case: PassCase, out: Path, log: Path, *more: str | Path) -> Command:
    """The command of a case, with further words."""
    return Command([*case.words, out / case.output, "-q", *more], log)


def check_refusal(code: int, said: str) -> None:
    """One line, no traceback, an exit status that names the kind."""
    errors = [line for line in said.splitlines() if line.startswith("moe-gguf: error: ")]
    assert code in (2, 3, 4) and len(errors) == 1, (code, said)
    assert said.splitlines()[-1] == errors[0] and "Traceback" not in said, said


def check_next_run(case: PassCase, out: Path, log: Path) -> None:
    """Undisturbed, the same command makes the files, unless they stand already."""
    again = command(case, out, log)
    code, said = again.wait(), again.said()
    assert code == 0 or "exists already" in said, said
    if code == 4 and case.check_final_names(out) < len(
        case.files
    ):  # a run that was stopped among its last steps
        again = command(case, out, log, "--force")
        assert again.wait() == 0, again.said()
    case.check_done(out)


def moment(case: PassCase, rng: random.Random) -> None:
    """Wait for a moment of a run; the last ones, where files get their names, have a share of their own."""
    share = rng.random() if rng.random() < 0.7 else 0.85 + 0.4 * rng.random()
    time.sleep(share * (case.seconds + 0.05))


def new_folder(folder: Path) -> Path:
    """An empty folder for outputs."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder
