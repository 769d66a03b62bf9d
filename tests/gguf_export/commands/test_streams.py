"""Standard output and error that are closed, full, cut off or of another encoding: no traceback, no lost work."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import pytest
from command_line import forward_words, invoke
from pico import pico_mixtral

from gguf_export.cli import main
from gguf_export.commands.exit_codes import OUTPUT
from gguf_export.commands.streams import BROKEN_PIPE, show, standard_streams, summary, tell

FULL = Path("/dev/full")
MAIN = "from gguf_export.cli import main; main()"
CANNOT = "standard output: cannot be written: "

pytestmark = pytest.mark.skipif(not FULL.exists(), reason="this system has no /dev/full")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pico_mixtral(tmp_path_factory.mktemp("models") / "Pico-4x1M-bf16")


@pytest.fixture(scope="module")
def file(model: Path) -> Path:
    assert invoke("export", model, "-t", "Q8_0", "-o", model.parent, "-q").exit_code == 0
    return next(model.parent.glob("*Q8_0.gguf"))


# -- the streams of a process, spoilt as a shell spoils them


def closed() -> None:
    """What Python has in the place of a stream that is closed."""


def full() -> IO[str]:
    return FULL.open("w", encoding="utf-8")


def cut_off() -> IO[str]:
    """A pipe that nobody reads any more."""
    reading, writing = os.pipe()
    os.close(reading)
    return os.fdopen(writing, "w", encoding="utf-8")


SPOILT: dict[str, tuple[Callable[[], IO[str] | None], str, int]] = {
    "closed": (closed, "Bad file descriptor", OUTPUT),
    "full": (full, "No space left on device", OUTPUT),
    "cut off": (cut_off, "", BROKEN_PIPE),
}
"""How standard output is spoilt, what is said of it, and the exit status where the text was the result."""


def matrix(cases: Sequence[str], ways: Sequence[str]) -> list[Any]:
    """Each case in each way; where torch works, all ways but the first are slow."""
    heavy = ("compare", "errors", "imatrix")
    return [
        pytest.param(case, way, marks=pytest.mark.slow if case in heavy and way != ways[0] else ())
        for case in cases
        for way in ways
    ]


class Ran:
    """The command line in this process, on real streams: sys.stdout and sys.stderr as the interpreter makes them."""

    def __init__(self, words: Sequence[Any], stdout: IO[str] | None, stderr: IO[str] | None) -> None:
        kept = sys.stdout, sys.stderr
        sys.stdout, sys.stderr = stdout, stderr
        try:
            main([str(word) for word in words])
        except SystemExit as left:
            self.status = left.code or 0
        finally:
            assert (sys.stdout, sys.stderr) == (stdout, stderr)
            sys.stdout, sys.stderr = kept
        for stream in (stdout, stderr):
            if stream is not None:
                stream.close()  # fails where something is left to be written


def ran(words: Sequence[Any], stdout: IO[str] | None, folder: Path) -> tuple[int | str, str]:
    """The exit status, and what stood on standard error."""
    told = folder / "stderr.txt"
    done = Ran(words, stdout, told.open("w", encoding="utf-8"))
    return done.status, told.read_text(encoding="utf-8")


LIGHT = (
    "inspect",
    "inspect checkpoint",
    "inspect --json",
    "doctor",
    "doctor --json",
    "verify",
    "plan",
    "help",
)


def text_words(case: str, model: Path, file: Path, folder: Path) -> list[Any]:
    """A command whose result is what it prints."""
    text = forward_words("compare", model, folder)[2:6]
    words: dict[str, list[Any]] = {
        "inspect": ["inspect", file, "--tensors"],
        "inspect checkpoint": ["inspect", model],
        "inspect --json": ["inspect", file, "--json"],
        "doctor": ["doctor", model, "-q"],
        "doctor --json": ["doctor", model, "-q", "--json"],
        "verify": ["verify", file, "-q"],
        "plan": ["export", model, "-t", "Q8_0", "--dry-run", "-o", folder],
        "help": ["export", "--help"],
        "version": ["--version"],
        "compare": ["compare", model, *text, "-t", "Q8_0", "--chunks", 2],
        "errors": ["errors", model, *text, "-t", "Q8_0", "--chunks", 2, "--no-baseline"],
    }
    return words[case]


@pytest.mark.parametrize(("case", "how"), matrix([*LIGHT, "version", "compare", "errors"], list(SPOILT)))
def test_a_text_that_is_lost_costs_the_exit_status(
    model: Path, file: Path, tmp_path: Path, case: str, how: str
) -> None:
    make, cause, status = SPOILT[how]
    done, told = ran(text_words(case, model, file, tmp_path), make(), tmp_path)
    assert done == status
    lines = [line for line in told.splitlines() if "standard output" in line]
    assert lines == [f"moe-gguf: error: {CANNOT}{cause}"] * bool(cause)
    assert "Traceback" not in told and "goes on" not in told


def file_words(verb: str, model: Path, folder: Path) -> list[Any]:
    """A command whose result is a file, and which prints a table, too."""
    words = [word for word in forward_words(verb, model, folder) if word != "--quiet"]
    return words if verb == "imatrix" else [*words, "--chunks", 2]


@pytest.mark.parametrize(
    ("verb", "how"), matrix(["export", "imatrix", "compare", "errors"], ["full", "closed", "cut off"])
)
def test_files_that_are_whole_are_a_success(model: Path, tmp_path: Path, verb: str, how: str) -> None:
    (tmp_path / "made").mkdir()
    make, cause, _ = SPOILT[how]
    words = [str(word) for word in file_words(verb, model, tmp_path / "made")]
    done, told = ran(words, make(), tmp_path)
    assert done == 0
    lines = [line for line in told.splitlines() if "standard output" in line]
    assert lines == [f"{CANNOT}{cause}; the files are whole"] * bool(cause)
    names = {path.name for path in (tmp_path / "made").iterdir()} - {"text.txt", "Pico-4x1M-imatrix.gguf"}
    assert len(names) == 1 and not any(name.endswith((".partial", ".state", ".lock")) for name in names)


@pytest.mark.parametrize("how", ["closed", "full", "cut off"])
def test_work_goes_on_though_nobody_can_be_told(model: Path, tmp_path: Path, how: str) -> None:
    said = tmp_path / "stdout.txt"
    words = ["export", model, "-t", "Q8_0", "-o", tmp_path]
    done = Ran(words, said.open("w", encoding="utf-8"), SPOILT[how][0]())
    assert done.status == 0
    printed = said.read_text(encoding="utf-8")
    assert "Q8_0" in printed and "encoding:" not in printed
    other = [*words, "--override-kv", "general.author=str:x"]
    refused = Ran(other, said.open("w", encoding="utf-8"), SPOILT[how][0]())
    assert refused.status == OUTPUT and not said.read_text(encoding="utf-8")


def test_a_fault_that_was_found_stays_the_exit_status(model: Path, tmp_path: Path) -> None:
    done, told = ran(["inspect", tmp_path / "absent.gguf"], cut_off(), tmp_path)
    assert done == 3 and told.count("\n") == 1 and "absent.gguf" in told


def spoilt_by_shell(words: Sequence[Any], redirections: str, **more: Any) -> subprocess.CompletedProcess[str]:
    command = shlex.join([sys.executable, *map(str, words)])
    return subprocess.run(
        ["sh", "-c", f"exec {command} {redirections}"], capture_output=True, text=True, check=False, **more
    )


@pytest.mark.parametrize(
    "redirections",
    [
        "<&- >&- 2>&-",
        *(pytest.param(one, marks=pytest.mark.slow) for one in (">&-", "2>&-", ">/dev/full 2>/dev/full")),
    ],
)
def test_a_process_leaves_well(model: Path, file: Path, tmp_path: Path, redirections: str) -> None:
    """The status that the system sees, after the interpreter has flushed what is its own."""
    words = ["-c", MAIN, "export", model, "-t", "Q8_0", "-o", tmp_path]
    done = spoilt_by_shell(words, redirections)
    assert (done.returncode, "encoding:" in done.stdout) == (0, False), done.stderr
    assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr
    assert (tmp_path / file.name).read_bytes() == file.read_bytes()


def test_a_process_says_what_it_could_not_print(file: Path) -> None:
    for redirection, cause in ((">&-", "Bad file descriptor"), (">/dev/full", "No space left on device")):
        done = spoilt_by_shell(["-c", MAIN, "inspect", file], redirection)
        assert (done.returncode, done.stderr) == (OUTPUT, f"moe-gguf: error: {CANNOT}{cause}\n")


def test_a_pipe_that_is_cut_off_is_left_in_silence(file: Path) -> None:
    with cut_off() as pipe:
        done = subprocess.run(
            [sys.executable, "-c", MAIN, "inspect", str(file), "--tensors"],
            stdout=pipe,
            stderr=subprocess.PIPE,
            check=False,
        )
    assert (done.returncode, done.stderr) == (BROKEN_PIPE, b"")


def test_no_output_gets_the_number_of_a_standard_stream(tmp_path: Path) -> None:
    script = f"""
import os
from gguf_export.commands.streams import show, standard_streams, tell
with standard_streams(), open({str(tmp_path / "output")!r}, "wb") as output:
    assert output.fileno() > 2
    for number in (1, 2):
        os.write(number, b"said by a library in C")
    show("said")
    tell("said")
"""
    for redirections in ("<&-", "2>&-", "<&- 2>&-"):
        assert spoilt_by_shell(["-c", script], redirections).returncode == 0
    assert (
        spoilt_by_shell(["-c", script], "<&- >&- 2>&-").returncode == OUTPUT
    )  # for it could not say that it said
    assert (tmp_path / "output").read_bytes() == b""


def test_a_pipe_that_does_not_block_is_waited_for(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    kept, sys.stdout = sys.stdout, os.fdopen(writing, "w", encoding="utf-8")
    got: list[bytes] = []

    def read() -> None:
        time.sleep(0.05)  # the pipe is likely to be full then; all must arrive in any case
        with os.fdopen(reading, "rb") as pipe:
            got.append(pipe.read())

    reader = threading.Thread(target=read)
    reader.start()
    try:
        with standard_streams():
            for _ in range(100):
                show("x" * 9_999)
    finally:
        sys.stdout.close()
        sys.stdout = kept
        reader.join()
    assert len(got[0]) == 1_000_000


def test_a_summary_forgets_and_an_error_of_its_own_comes_through(tmp_path: Path) -> None:
    spoilt = full()
    kept, sys.stdout = sys.stdout, spoilt
    try:
        with standard_streams(), summary():
            show("lost")
        with pytest.raises(ZeroDivisionError), standard_streams():
            show("lost")
            raise ZeroDivisionError
        with pytest.raises(SystemExit) as left, standard_streams():
            show("lost")
            raise SystemExit(3)
        assert left.value.code == 3
    finally:
        sys.stdout = kept
        spoilt.close()


def test_streams_in_memory_are_left_alone(capsys: pytest.CaptureFixture[str]) -> None:
    before = sys.stdout, sys.stderr
    with standard_streams():
        show("a\x1b[31m\nb")
        tell("c\udcff")
        assert (sys.stdout, sys.stderr) == before
    assert capsys.readouterr() == ("a\\x1b[31m\\nb\n", "c\\xff\n")


def test_without_standard_error_nothing_goes_to_standard_output(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    tell("nothing")
    assert capsys.readouterr().out == ""


# -- encodings


@pytest.fixture
def odd(model: Path, tmp_path: Path) -> Iterator[Path]:
    """A folder with a model and texts whose names few encodings can say."""
    folder = tmp_path / "Ωé日"
    folder.mkdir()
    (folder / "Pico-Ω").symlink_to(model)
    yield folder


def odd_words(case: str, folder: Path) -> list[Any]:
    model = folder / "Pico-Ω"
    text = forward_words("compare", model, folder)[2:6]
    words: dict[str, list[Any]] = {
        "inspect": ["inspect", model],
        "inspect --json": ["inspect", model, "--json"],
        "doctor": ["doctor", model],
        "plan": ["export", model, "-t", "Q4_K_M", "--dry-run", "--name", "Ωé", "-o", folder],
        "export": ["export", model, "-t", "Q8_0", "--name", "Ωé", "-o", folder],
        "verify": ["verify", folder / "absent-Ω.gguf"],
        "help": ["compare", "--help"],
        "usage": ["export", model, "-t", "Q8_0", "--ctx", "Ω"],
        "imatrix": ["imatrix", model, *text, "-o", folder / "Ω.gguf"],
        "compare": ["compare", model, *text, "-t", "Q8_0", "--chunks", 2, "--json", folder / "Ω.json"],
        "errors": ["errors", model, *text, "-t", "Q8_0", "--chunks", 2, "-o", folder / "Ω.html"],
    }
    return words[case]


STATUS = {"inspect --json": 0, "doctor": 0, "help": 0, "verify": 1, "usage": 2}
SAID = ("inspect", "plan", "export", "imatrix", "compare", "errors")
"""Verbs that print the name."""


@pytest.mark.parametrize(("case", "encoding"), matrix([*STATUS, *SAID], ["ascii", "cp1252"]))
def test_every_encoding_says_what_it_can(odd: Path, tmp_path: Path, case: str, encoding: str) -> None:
    paths = tmp_path / "stdout.txt", tmp_path / "stderr.txt"
    done = Ran(odd_words(case, odd), *(path.open("w", encoding=encoding) for path in paths))
    assert done.status == STATUS.get(case, 0)
    raw_output, raw_errors = (path.read_bytes() for path in paths)
    # click writes its own messages in UTF-8 where the encoding is ASCII, on purpose
    output, errors = raw_output.decode(encoding), raw_errors.decode("utf-8" if case == "usage" else encoding)
    assert not any("\u2500" <= char <= "\u257f" for char in output)
    assert "Traceback" not in errors
    if case == "inspect --json":
        assert json.loads(output)["path"] == str(odd / "Pico-Ω")
    if case in SAID:
        assert r"\u03a9" in output
    if case == "verify":
        assert r"absent-\u03a9.gguf" in output


def test_a_locale_without_utf8_is_no_other_model(model: Path, tmp_path: Path) -> None:
    """Names on the command line and of folders are read as UTF-8; what the locale cannot spell is refused."""
    (tmp_path / "Pé-4x1M").symlink_to(model)
    environment = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    words = ["-c", MAIN, "export", tmp_path / "Pé-4x1M", "-t", "Q8_0", "-o", tmp_path, "--dry-run"]
    done = spoilt_by_shell(words, "", env=os.environ | environment)
    assert done.returncode == OUTPUT and len(done.stderr.splitlines()) == 1
    assert r"/P\xe9-4x1M-Q8_0.gguf: the encoding of file names here, ascii, lacks a character" in done.stderr
    done = spoilt_by_shell([*words, "--name", "Pe"], "", env=os.environ | environment)
    assert done.returncode == 0, done.stderr
