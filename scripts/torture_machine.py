"""What a machine does to a command: signals, full disks, caches torn by a power cut, streams that take nothing."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from torture_cases import PassCase, small_disk
from torture_commands import PATIENCE, check_next_run, check_refusal, command, moment, new_folder

ROOT = Path(__file__).resolve().parents[1]
STARTED = ["-c", "from gguf_export.cli import main; main()"]


# -- signals


def by_signals(case: PassCase, folder: Path, n: int, rng: random.Random) -> str:
    """A logout, a service manager or a person ends the command."""
    stopped = 0
    scratch = folder / "scratch"
    takes_text = "--text" in case.words
    for _ in range(n):
        out = new_folder(folder / "out")
        new_folder(scratch)
        more: list[str | Path] = ["--scratch", scratch] if takes_text else []
        number = rng.choice([signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
        run = command(case, out, folder / "log", *more)
        moment(case, rng)
        run.send(number)
        code, said = run.wait(), run.said()
        # Before the command line runs, a signal does what it does to every process.
        assert code in (0, 128 + number, -number), (number, code, said)
        assert "Traceback" not in said and "Exception ignored" not in said, said
        if code == 128 + number:
            stopped += 1
            assert "moe-gguf: stopped" in said, said
        case.check_final_names(out)
        assert not list(scratch.iterdir()), f"{number} left {list(scratch.iterdir())}"
        assert code == -number or not list(out.glob("*.lock")), list(out.iterdir())
        check_next_run(case, out, folder / "log")
    return f"{n} signals, {stopped} in time"


# -- a scratch folder on a disk that is full


def by_full_scratch(case: PassCase, folder: Path, n: int, rng: random.Random) -> str:
    """The disk of the scratch folder holds all hidden states, some, or none."""
    refused = 0
    for _ in range(n):
        out = new_folder(folder / "out")
        with small_disk(folder / "disk", rng.randrange(2**14, 2**23)):
            run = command(case, out, folder / "log", "--scratch", folder / "disk")
            code, said = run.wait(), run.said()
            if code:
                check_refusal(code, said)
                refused += 1
            assert not list((folder / "disk").iterdir()), list((folder / "disk").iterdir())
        check_next_run(case, out, folder / "log")
    return f"{n} small disks for scratch files, {refused} too small"


# -- the compiler's cache


DAMAGES: tuple[Callable[[bytes, int], bytes], ...] = (
    lambda content, at: b"",
    lambda content, at: content[:at],
    lambda content, at: bytes(len(content)),
    lambda content, at: content[:at] + bytes(len(content) - at),
    lambda content, at: os.urandom(len(content)),
    lambda content, at: content[:at] + os.urandom(1) + content[at + 1 :],
)
"""What is left of a file: nothing, its beginning, zeros, noise, or all but one byte."""


def by_torn_caches(model: Path, folder: Path, n: int, rng: random.Random) -> str:
    """The power failed while compiled kernels were written: files are empty, cut, zeroed, or noise."""
    cache = folder / "cache"
    environment = os.environ | {"NUMBA_CACHE_DIR": str(cache), "PYTHONPATH": str(ROOT)}
    words = [sys.executable, *STARTED, "export", str(model), "-t", "Q8_0", "-q", "--force", "-o"]
    torn = 0

    def files(name: str) -> dict[str, bytes]:
        out = new_folder(folder / name)
        done = subprocess.run(
            [*words, str(out)], env=environment, capture_output=True, check=False, timeout=PATIENCE
        )
        assert done.returncode == 0, (done.returncode, done.stderr)
        assert b"Traceback" not in done.stderr, done.stderr
        return {path.name: path.read_bytes() for path in out.iterdir()}

    healthy = files("out")
    for _ in range(n):
        kept = [path for path in cache.rglob("*.nb?") if path.is_file()]
        for path in rng.sample(kept, rng.randint(1, len(kept))):
            content = path.read_bytes()
            path.write_bytes(rng.choice(DAMAGES)(content, rng.randrange(len(content))))
            torn += 1
        assert files("out") == healthy
    shutil.rmtree(cache)
    return f"{n} torn caches, {torn} files of them"


# -- somewhere to print


def by_broken_streams(case: PassCase, folder: Path, n: int, rng: random.Random) -> str:
    """Standard output is closed, full, or read by nobody; the encoding is no Unicode."""
    refused = 0
    ways = [" >&-", " 2>&-", " >&- 2>&-", " >/dev/full", " 2>/dev/full", " | true", " 2>&1 | head -c 1"]
    for _ in range(n):
        out = new_folder(folder / "out")
        way = rng.choice(ways)
        environment = os.environ | {
            "PYTHONPATH": str(ROOT),
            "PYTHONIOENCODING": rng.choice(["utf-8", "ascii", "cp1252"]),
        }
        words = [sys.executable, *STARTED, *case.words, out / case.output]
        said = folder / "said"
        with said.open("wb") as file:
            done = subprocess.run(
                ["bash", "-o", "pipefail", "-c", f'"$@"{way}', "bash", *map(str, words)],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                env=environment,
                check=False,
                timeout=PATIENCE,
            )
        text = said.read_text(errors="replace")
        assert "Traceback" not in text and "Exception ignored" not in text, (way, text)
        assert 0 <= done.returncode < 126 or "|" in way, (way, done.returncode, text)
        case.check_done(out)
        refused += done.returncode != 0
    return f"{n} times nowhere to print, {refused} said so, every file whole"
