"""Passes over a text that are stopped, and what the next run makes of their state: never another digit."""

from __future__ import annotations

import errno
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import textwrap
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from pico import TEXT, pico_mixtral

from calibration.forward.forward_pass import ForwardPass
from calibration.forward.run import forward
from calibration.forward.saved_state import PassState
from calibration.forward.settings import ForwardSettings
from calibration.forward.streams import Observer, Stream
from calibration.forward.timings import Stage
from calibration.importance.imatrix_files import load_imatrix
from calibration.importance.observers import Collected, collect_imatrix
from calibration.text.chunks import Chunks, Text, make_chunks
from calibration.text.tokenizer import open_tokenizer
from gguf_export.cli import main
from gguf_export.commands.console import ProgressView
from gguf_export.commands.exit_codes import DEFECT
from gguf_export.files.locks import LockedFile
from gguf_export.files.replacing import replacing, write_text
from gguf_export.writing import state_file
from gguf_export.writing.export import prepare, run
from gguf_export.writing.state_file import StateFile, state_path
from quantize.exceptions import OutputError
from quantize.recipes.ftypes import ftype
from quantize.recipes.recipe import Recipe
from quantize.sources.checkpoint import open_checkpoint
from quantize.telling import Progress, Remark

N_LAYER = 3
N_CTX = 32


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("passes")
    pico_mixtral(made / "pico", n_layer=N_LAYER)
    pico_mixtral(made / "tied", n_layer=N_LAYER, tied=True)
    (made / "text.txt").write_text(TEXT * 3, encoding="utf-8")
    (made / "other.txt").write_text("everybody knows numbers. " * 30, encoding="utf-8")
    export = prepare(open_checkpoint(made / "pico"), [Recipe(ftype(name)) for name in ("Q8_0", "F16")], made)
    for made_file, name in zip(run(export, jobs=1).files, ("a.gguf", "b.gguf"), strict=True):
        made_file.path.rename(made / name)
    return made


@pytest.fixture(scope="module")
def whole(folder: Path) -> dict[str, Any]:
    """What undisturbed runs give: the importance matrix, its table, and the figures of a comparison."""
    done = invoke(*imatrix_words(folder, folder / "whole.gguf"))
    compared = invoke(*compare_words(folder, folder / "whole.json"))
    assert done.exit_code == compared.exit_code == 0, done.output + compared.output
    return {
        "imatrix": (folder / "whole.gguf").read_bytes(),
        "table": table(done),
        "json": figures(folder / "whole.json"),
        "compared": compared.stdout,
    }


@pytest.fixture(autouse=True)
def every_layer_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state_file, "KEEP_SECONDS", 0.0)
    monkeypatch.setattr(state_file, "KEEP_SHARE", math.inf)


def imatrix_words(folder: Path, output: Path, *more: str) -> list[str]:
    return [
        *("imatrix", str(folder / "pico"), "--text", str(folder / "text.txt")),
        *("--ctx", str(N_CTX), "-o", str(output), *more),
    ]


def compare_words(folder: Path, output: Path | None, *more: str) -> list[str]:
    return [
        *("compare", str(folder / "pico"), str(folder / "a.gguf"), str(folder / "b.gguf"), "-t", "Q4_0"),
        *("--text", f"prose={folder / 'text.txt'}", "--text", str(folder / "other.txt"), "--ctx", str(N_CTX)),
        *(["--json", str(output)] if output else []),
        *more,
    ]


def invoke(*words: str) -> Result:
    return CliRunner().invoke(main, list(words), catch_exceptions=True)


def table(done: Result) -> str:
    """Standard output but for the last line, which tells the speed."""
    return done.stdout.rsplit("\n", 2)[0]


def figures(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    del found["timings"]
    return found


class StoppedError(Exception):
    """Stands for whatever ends a run."""


def stop_in(patch: pytest.MonkeyPatch, bid: int, error: BaseException | None = None) -> None:
    """Let a pass end within a layer, when its hidden states are neither those before it nor those behind it."""
    original = ForwardPass.feed_forward

    def feed_forward(self: ForwardPass, now: int) -> None:
        if now == bid:
            raise error or StoppedError
        original(self, now)

    patch.setattr(ForwardPass, "feed_forward", feed_forward)


def stopped(bid: int, *words: str, error: BaseException | None = None) -> Result:
    with pytest.MonkeyPatch.context() as patch:
        stop_in(patch, bid, error)
        return invoke(*words)


@pytest.fixture
def passed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The layers that a pass enters, of its first stream."""
    entered: list[int] = []
    original = ForwardPass.attention

    def attention(self: ForwardPass, state: Any, bid: int) -> None:
        if state.index == 0:
            entered.append(bid)
        original(self, state, bid)

    monkeypatch.setattr(ForwardPass, "attention", attention)
    return entered


@pytest.mark.parametrize("bid", range(1, N_LAYER))
def test_imatrix_goes_on_behind_each_layer(
    folder: Path, tmp_path: Path, whole: dict[str, Any], passed: list[int], bid: int
) -> None:
    words = imatrix_words(folder, tmp_path / "m.gguf")
    done = stopped(bid, *words)
    assert done.exit_code == DEFECT
    assert (
        f"m.gguf: {bid} of 3 layers are done and kept in m.gguf.state; the same command goes on"
        in done.stderr
    )
    assert {path.name for path in tmp_path.iterdir()} == {"m.gguf.state"}
    passed.clear()
    done = invoke(*words)
    assert done.exit_code == 0, done.output
    assert f"m.gguf: continued, {bid} of 3 layers are done\n" in done.stderr
    assert passed == list(range(bid, N_LAYER))
    assert (tmp_path / "m.gguf").read_bytes() == whole["imatrix"]
    assert table(done) == whole["table"].replace(str(folder / "whole.gguf"), "m.gguf")
    assert {path.name for path in tmp_path.iterdir()} == {"m.gguf"}


def test_a_run_may_be_stopped_again_and_again(folder: Path, tmp_path: Path, whole: dict[str, Any]) -> None:
    words = imatrix_words(folder, tmp_path / "m.gguf")
    for bid in (0, 1, 1, 2):
        stopped(bid, *words)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("calibration.importance.imatrix_files._write", failing(errno.ENOSPC))
        done = invoke(*words)
    assert done.exit_code == 4
    assert "3 of 3 layers are done and kept" in done.stderr
    assert "No space left on device" in done.stderr
    done = invoke(*words)
    assert "continued, 3 of 3 layers" in done.stderr
    assert (tmp_path / "m.gguf").read_bytes() == whole["imatrix"]


@pytest.mark.parametrize("bid", [0, *range(1, N_LAYER), "logits", "report"])
def test_compare_goes_on_behind_each_layer(
    folder: Path, tmp_path: Path, whole: dict[str, Any], passed: list[int], bid: int | str
) -> None:
    words = compare_words(folder, tmp_path / "c.json")
    if isinstance(bid, int):
        done = stopped(bid, *words)
    else:
        score, report = "judging.side_by_side.score", "reports.compare_data.compare_json"
        place = f"calibration.{score}" if bid == "logits" else f"gguf_export.{report}"
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(place, failing(None, after=5 if bid == "logits" else 0))
            done = invoke(*words)
    assert done.exit_code == DEFECT
    n_done = bid if isinstance(bid, int) else N_LAYER
    assert (f"c.json: {n_done} of 3 layers are done and kept" in done.stderr) == (n_done > 0)
    passed.clear()
    done = invoke(*words)
    assert done.exit_code == 0, done.output
    assert passed == list(range(n_done, N_LAYER))
    assert figures(tmp_path / "c.json") == whole["json"]
    assert (
        done.stdout.replace("c.json", "whole.json").replace(str(tmp_path), str(folder)) == whole["compared"]
    )
    assert {path.name for path in tmp_path.iterdir()} == {"c.json"}


def failing(code: int | None, after: int = 0) -> Callable[..., Any]:
    """Stands for a function that fails from some call on; before that nobody looks at what it returns."""
    seen: list[int] = []

    def fail(*_: Any, **__: Any) -> None:
        seen.append(1)
        if len(seen) > after:
            raise StoppedError if code is None else OSError(code, os.strerror(code))

    return fail


@pytest.mark.parametrize("more", [["--state", "x.state"], ["--csv", "x.csv", "--html", "x.html"]])
def test_where_the_state_of_a_comparison_lies(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = compare_words(folder, None, *more)
    stopped(2, *words)
    state = "x.state" if "--state" in more else "x.csv.state"
    assert [path.name for path in tmp_path.iterdir()] == [state]
    done = invoke(*words)
    assert "continued, 2 of 3 layers" in done.stderr
    assert {path.name for path in tmp_path.iterdir()} == set(more[1::2]) - {"x.state"}


@pytest.mark.skipif(sys.platform == "win32", reason="/dev/stdout")
@pytest.mark.parametrize("more", [[], ["--json", "/dev/null"]])
def test_a_comparison_without_a_file_keeps_no_state(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(PassState, "write", failing(errno.EIO))
    done = invoke(*compare_words(folder, None, *more))
    assert done.exit_code == 0, done.output
    assert not list(tmp_path.iterdir())
    assert not Path("/dev/null.state").exists()


def copied(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy", ignore=shutil.ignore_patterns("whole*", "tied")))


@pytest.mark.parametrize(
    ("change", "more", "reason"),
    [
        (lambda f: (f / "text.txt").write_text(TEXT * 4, encoding="utf-8"), [], "the text changed"),
        (
            lambda f: os.utime(f / "pico" / "model-00001-of-00002.safetensors", ns=(1, 1)),
            [],
            "the checkpoint changed",
        ),
        (lambda f: None, ["--ctx", "16"], "the length of the chunks"),
        (lambda f: None, ["--process-output"], "the choice of tensors changed"),
    ],
)
def test_a_state_of_something_else_is_not_used(
    folder: Path, tmp_path: Path, change: Callable[[Path], Any], more: list[str], reason: str
) -> None:
    model, output = copied(folder, tmp_path), tmp_path / "m.gguf"
    stopped(2, *imatrix_words(model, output))
    change(model)
    done = invoke(*imatrix_words(model, output, *more))
    assert done.exit_code == 0, done.output
    assert "m.gguf: begun afresh, because the" in done.stderr
    assert reason in done.stderr
    assert "since it was stopped" in done.stderr
    undisturbed = tmp_path / "undisturbed.gguf"
    invoke(*imatrix_words(model, undisturbed, *more))
    assert output.read_bytes() == undisturbed.read_bytes()
    assert not state_path(output).exists()


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        (["--activations", "int8"], "the activations changed"),
        (["-t", "Q8_0"], "the choice of models changed"),
        (["--tensor-type", "ffn_up=F16"], "the choice of models changed"),
        (["--imatrix", "whole.gguf"], "the importance matrix changed"),
    ],
)
def test_a_state_of_another_comparison_is_not_used(
    folder: Path, tmp_path: Path, whole: dict[str, Any], more: list[str], reason: str
) -> None:
    stopped(2, *compare_words(folder, tmp_path / "c.json"))
    more = [str(folder / word) if word == "whole.gguf" else word for word in more]
    done = invoke(*compare_words(folder, tmp_path / "c.json", *more))
    assert done.exit_code == 0, done.output
    assert f"c.json: begun afresh, because {reason} since it was stopped" in done.stderr


def export_words(folder: Path, output: Path, *more: str) -> list[str]:
    return [
        *("export", str(folder / "pico"), "--text", str(folder / "text.txt"), "--ctx", str(N_CTX)),
        *("-t", "Q4_K_M", "-t", "Q8_0", "-j", "1", "-o", str(output), "--no-save-imatrix", *more),
    ]


@pytest.fixture(scope="module")
def exported(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The files of calibrated exports that nobody disturbs, with and without a prior."""
    made = tmp_path_factory.mktemp("exported")
    found: dict[str, Any] = {}
    for prior in ("0", "9"):
        done = invoke(*export_words(folder, made / prior, "--prior", prior))
        assert done.exit_code == 0, done.output
        found[prior] = files(made / prior)
    assert len(found["0"]) == 2
    assert found["0"] != found["9"]
    return found


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def lose(partial: Path) -> None:
    """The disk forgets what was written of the first layers."""
    content = partial.read_bytes()
    middle = len(content) // 3
    partial.write_bytes(content[:middle] + bytes(2000) + content[middle + 2000 :])


@pytest.mark.parametrize("prior", ["0", "9"])
@pytest.mark.parametrize("bid", range(1, N_LAYER))
@pytest.mark.parametrize("lost", ["nothing", "a piece", "the files", "one file", "the state"])
def test_a_calibrated_export_goes_on(
    folder: Path, tmp_path: Path, exported: dict[str, Any], passed: list[int], bid: int, prior: str, lost: str
) -> None:
    """State and files know nothing of each other: what one of them lacks is made again with the same importances."""
    out = tmp_path / "out"
    words = export_words(folder, out, "--prior", prior)
    done = stopped(bid, *words)
    assert done.exit_code == DEFECT, done.output
    assert done.stderr.count("the same command goes on") == 3
    first, second = sorted(out.glob("*.partial"))
    if lost == "a piece":
        lose(first)
    if lost in ("the files", "one file"):
        for path in [*out.glob("*.partial"), *out.glob("*.journal")]:
            if lost == "the files" or path.stem == second.stem:
                path.unlink()
    if lost == "the state":
        next(out.glob("*.state")).unlink()
    passed.clear()
    done = invoke(*words)
    assert done.exit_code == 0, done.output
    assert ("layers are done" in done.stderr) == (lost != "the state")
    assert passed == list(range(0 if lost == "the state" else bid, N_LAYER))
    assert files(out) == exported[prior]


def test_a_state_that_its_files_have_outlived_is_removed(
    folder: Path, tmp_path: Path, exported: dict[str, Any]
) -> None:
    out = tmp_path / "out"
    words = export_words(folder, out)
    stopped(2, *words)
    state = next(out.glob("*.state"))
    kept = state.read_bytes()
    assert invoke(*words).exit_code == 0
    state.write_bytes(kept)  # the run was killed when the files had just got their names
    done = invoke(*words)
    assert done.exit_code == 0 and "is what would be made" in done.stderr
    assert files(out) == exported["0"]
    stopped(2, *words, "--force")  # now the state is that of a run that was about to replace the files
    assert state.exists()
    done = invoke(*words, "--force")
    assert done.stderr.count("continued") == 3
    assert files(out) == exported["0"]


def test_the_state_takes_no_space_of_the_files(
    folder: Path, tmp_path: Path, exported: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    needed = [sum(map(len, exported["0"].values()))]
    free: list[int] = []
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(state_file, "SPARE_BYTES", 0)
    original = StateFile.keep

    def keep(self: StateFile, state: PassState) -> None:
        until = time.monotonic() + 60
        while self.spare() >= needed[-1] and time.monotonic() < until:
            time.sleep(0.01)  # the threads that encode the layer are not waited for by the pass
        needed.append(self.spare())
        spare, self.spare = self.spare, lambda: needed[-1]  # threads still write
        for more in (-1, 0):
            free[:] = [needed[-1] + state.n_bytes + more]
            original(self, state)
            assert self.path.exists() == (more == 0)
        self.path.unlink()
        self.spare = spare

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=free[0] if free else usage.free))
        patch.setattr(StateFile, "keep", keep)
        assert invoke(*export_words(folder, tmp_path / "out")).exit_code == 0
    assert len(needed) == 1 + N_LAYER
    assert needed[0] > needed[1] > needed[2] > needed[3] >= 0


def test_restart(folder: Path, tmp_path: Path, whole: dict[str, Any], passed: list[int]) -> None:
    words = imatrix_words(folder, tmp_path / "m.gguf")
    stopped(2, *words)
    passed.clear()
    done = invoke(*words, "--restart")
    assert "continued" not in done.stderr
    assert passed == list(range(N_LAYER))
    assert (tmp_path / "m.gguf").read_bytes() == whole["imatrix"]


def damages(content: bytes) -> Iterator[bytes]:
    """Torn, grown, changed anywhere: in headers, numbers and the table at the end."""
    rng = random.Random(1)
    yield b""
    for share in (0.1, 0.5, 0.9, 0.999):
        yield content[: int(share * len(content))]
    yield bytes(len(content))
    yield content + bytes(100000)
    for i in range(40):
        place = rng.randrange(len(content)) if i < 20 else len(content) - 1 - rng.randrange(6000)
        yield content[:place] + bytes([content[place] ^ (1 << rng.randrange(8))]) + content[place + 1 :]


def test_a_damaged_state_is_never_believed(folder: Path, tmp_path: Path, whole: dict[str, Any]) -> None:
    words = imatrix_words(folder, tmp_path / "m.gguf", "--force", "-q")
    stopped(2, *words)
    state = state_path(tmp_path / "m.gguf")
    content, afresh = state.read_bytes(), 0
    for damaged in damages(content):
        state.write_bytes(damaged)
        done = invoke(*words)
        assert done.exit_code == 0, done.output
        # Dates and the like within the archive may change without harm.
        assert ("because its state is damaged" in done.stderr) != ("continued" in done.stderr)
        afresh += "damaged" in done.stderr
        assert (tmp_path / "m.gguf").read_bytes() == whole["imatrix"]
    assert afresh > 25


def rewritten(
    state: Path, change: Callable[[dict[str, bytes]], Any], compression: int = zipfile.ZIP_STORED
) -> None:
    """A state that was changed on purpose: its checksums are right."""
    with zipfile.ZipFile(state) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    change(parts)
    with zipfile.ZipFile(state, "w", compression) as archive:
        for name, content in parts.items():
            archive.writestr(name, content)


SUMS = "observer.0.blk.0.ffn_gate_exps.weight.in_sum2.npy"
TOLD = "pass.json"


@pytest.mark.parametrize(
    "change",
    [
        lambda parts: parts.update({SUMS: parts[SUMS].replace(b"(4, 64)", b"(4, 9**")}),
        lambda parts: parts.update({SUMS: parts[SUMS].replace(b"(4, 64)", b"(9, 99)")}),
        lambda parts: parts.update({SUMS: parts[SUMS].replace(b"'<f4'", b"'|O'")}),
        lambda parts: parts.update({SUMS: b""}),
        lambda parts: parts.update({"observer.1.tokens.npy": parts["observer.1.seen.npy"]}),
        lambda parts: parts.update({"observer.9.tokens.npy": parts["observer.1.seen.npy"]}),
        lambda parts: parts.pop("observer.1.pairs.npy"),
        lambda parts: parts.pop("hidden.0.npy"),
        lambda parts: parts.update({"hidden.0.npy": parts["hidden.0.npy"][:-1]}),
        lambda parts: parts.update({"hidden.0.npy": parts["hidden.0.npy"] + b"x"}),
        lambda parts: parts.update({TOLD: b"[]"}),
        lambda parts: parts.update({TOLD: parts[TOLD].replace(b'"n_done": 2', b'"n_done": 9')}),
        lambda parts: parts.update({TOLD: parts[TOLD].replace(b'"n_done": 2', b'"n_done": {}')}),
        lambda parts: parts.update({TOLD: parts[TOLD].replace(b'"n_token"', b'"n_other"')}),
        lambda parts: parts.update({"fingerprint.json": b"7"}),
        lambda parts: parts.pop("fingerprint.json"),
    ],
)
def test_a_state_that_does_not_fit_is_damaged(
    folder: Path, tmp_path: Path, whole: dict[str, Any], change: Callable[[dict[str, bytes]], Any]
) -> None:
    words = imatrix_words(folder, tmp_path / "m.gguf", "-q")
    stopped(2, *words)
    rewritten(state_path(tmp_path / "m.gguf"), change)
    done = invoke(*words)
    assert done.exit_code == 0, done.output
    assert "m.gguf: begun afresh, because its state is damaged" in done.stderr
    assert (tmp_path / "m.gguf").read_bytes() == whole["imatrix"]


def test_nothing_is_unpacked(folder: Path, tmp_path: Path) -> None:
    """What is not compressed cannot be larger than its file."""
    words = imatrix_words(folder, tmp_path / "m.gguf", "-q")
    stopped(2, *words)
    rewritten(
        state_path(tmp_path / "m.gguf"), lambda parts: parts.update(x=bytes(10**7)), zipfile.ZIP_DEFLATED
    )
    assert "its state is damaged" in invoke(*words).stderr


def test_two_runs_into_one_file(folder: Path, tmp_path: Path) -> None:
    for words in (imatrix_words(folder, tmp_path / "m"), compare_words(folder, tmp_path / "m")):
        with LockedFile(tmp_path / "m.state.lock", "m"):
            done = invoke(*words)
        assert done.exit_code == 4
        assert "m: another run is writing this file; wait for it" in done.stderr
        assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("make", [imatrix_words, compare_words])
def test_a_run_that_ended_before_the_lock_was_taken(
    make: Callable[..., list[str]], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its file is there by then, and is not replaced."""
    real = StateFile.__init__

    def late(self: StateFile, *args: Any, **options: Any) -> None:
        (tmp_path / "m").write_text("of another run")
        real(self, *args, **options)

    monkeypatch.setattr(StateFile, "__init__", late)
    done = invoke(*make(folder, tmp_path / "m"))
    assert done.exit_code == 4 and "m: exists already; pass --force to replace it" in done.stderr
    assert (tmp_path / "m").read_text() == "of another run"


@pytest.mark.parametrize("verb", ["imatrix", "compare"])
def test_ctrl_c(folder: Path, tmp_path: Path, verb: str) -> None:
    make = imatrix_words if verb == "imatrix" else compare_words
    done = stopped(0, *make(folder, tmp_path / "m"), error=KeyboardInterrupt())
    assert (done.exit_code, done.stderr.splitlines()[-1]) == (130, "moe-gguf: stopped")
    assert not list(tmp_path.iterdir())
    done = stopped(1, *make(folder, tmp_path / "m"), error=KeyboardInterrupt())
    assert done.exit_code == 130
    assert done.stderr.splitlines()[-2:] == [
        "m: 1 of 3 layers are done and kept in m.state; the same command goes on from there",
        "moe-gguf: stopped",
    ]


def child(*words: str, hold: Path) -> subprocess.Popen[str]:
    """A process of its own; as long as the file `hold` is there, it waits within layer 2."""
    script = """
        import math, sys, time
        from pathlib import Path
        from calibration.forward.forward_pass import ForwardPass
        from gguf_export.writing import state_file
        from gguf_export.cli import main
        hold, sys.argv[1:] = Path(sys.argv[1]), sys.argv[2:]
        state_file.KEEP_SECONDS, state_file.KEEP_SHARE = 0.0, math.inf
        feed_forward = ForwardPass.feed_forward
        def wait(self, bid):
            while bid == 2 and hold.exists():
                time.sleep(0.01)
            feed_forward(self, bid)
        ForwardPass.feed_forward = wait
        main()
    """
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script), str(hold), *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="signals are POSIX")
def test_a_killed_process_goes_on(folder: Path, tmp_path: Path, whole: dict[str, Any]) -> None:
    hold = tmp_path / "hold"
    hold.touch()
    words = imatrix_words(folder, tmp_path / "m.gguf")
    first = child(*words, hold=hold)
    state = state_path(tmp_path / "m.gguf")
    while not (state.exists() and zipfile.ZipFile(state).read("pass.json").startswith(b'{"n_done": 2')):
        assert first.poll() is None, first.communicate()
        time.sleep(0.01)
    done = invoke(*words)
    assert "another run is writing this file" in done.stderr
    first.send_signal(signal.SIGKILL)
    first.communicate(timeout=300)
    assert {path.name for path in tmp_path.iterdir()} == {"hold", "m.gguf.state", "m.gguf.state.lock"}
    done = invoke(*words)
    assert "m.gguf: continued, 2 of 3 layers are done" in done.stderr
    assert (tmp_path / "m.gguf").read_bytes() == whole["imatrix"]
    assert {path.name for path in tmp_path.iterdir()} == {"hold", "m.gguf"}


def test_a_full_disk_costs_the_state_and_not_the_pass(
    folder: Path, tmp_path: Path, whole: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=2**20))
    words = imatrix_words(folder, tmp_path / "m.gguf", "-q")
    done = stopped(2, *words)
    assert done.stderr.partition("Traceback")[0].count("\n") == 2
    assert "m.gguf.state: the state of the pass cannot be kept (No space left on device)" in done.stderr
    assert "the pass goes on" in done.stderr
    assert (
        "m.gguf: nothing is kept, because the state of the pass could not be written 2 times" in done.stderr
    )
    assert not list(tmp_path.iterdir())
    done = invoke(*words)
    assert done.exit_code == 0
    assert (tmp_path / "m.gguf").read_bytes() == whole["imatrix"]


def test_a_state_that_fails_halfway_leaves_the_one_before(
    folder: Path, tmp_path: Path, whole: dict[str, Any]
) -> None:
    words = imatrix_words(folder, tmp_path / "m.gguf", "-q")
    original = PassState.write

    def write(self: PassState, archive: zipfile.ZipFile) -> None:
        original(self, archive)
        if self.n_done == 2:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PassState, "write", write)
        done = stopped(2, *words)
    assert "cannot be kept (Input/output error)" in done.stderr
    assert "m.gguf: 1 of 3 layers are done and kept" in done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"m.gguf.state"}
    assert "continued, 1 of 3 layers" in invoke(*words).stderr
    assert (tmp_path / "m.gguf").read_bytes() == whole["imatrix"]


def test_a_short_pass_writes_no_state(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state_file, "KEEP_SECONDS", 30.0)
    monkeypatch.setattr(PassState, "write", failing(errno.EIO))
    done = stopped(2, *imatrix_words(folder, tmp_path / "m.gguf", "-q"))
    assert not done.stderr.partition("Traceback")[0]
    assert not list(tmp_path.iterdir())


def test_a_slow_disk_gets_fewer_states(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At most a twentieth of the time is spent on them."""
    clock, written = [0.0], []
    monkeypatch.setattr(state_file, "KEEP_SECONDS", 30.0)
    monkeypatch.setattr(state_file, "KEEP_SHARE", 0.05)
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])

    class Slow(PassState):
        n_bytes = 0

        def write(self, archive: zipfile.ZipFile) -> None:
            written.append(clock[0])
            clock[0] += 10

    state = Slow(99, [], [], None)  # type: ignore[arg-type]
    with StateFile(tmp_path / "x", "x", {}) as keeper:
        for _ in range(60):
            clock[0] += 20
            keeper.keep(state)
    assert written == [40, 250, 460, 670, 880, 1090]


def test_a_state_that_its_output_has_outlived_is_removed(folder: Path, tmp_path: Path) -> None:
    words = imatrix_words(folder, tmp_path / "m.gguf", "-q")
    stopped(2, *words)
    state, kept = state_path(tmp_path / "m.gguf"), state_path(tmp_path / "m.gguf").read_bytes()
    invoke(*words)
    state.write_bytes(kept)
    os.utime(state, ns=(1, 1))  # the run was killed when the file had just got its name
    done = invoke(*words)
    assert done.exit_code == 4
    assert "exists already" in done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"m.gguf"}
    state.write_bytes(kept)  # that of a later run with --force
    invoke(*words)
    assert state.exists()
    assert "continued, 2 of 3 layers" in invoke(*words, "--force").stderr


def chunks_of(folder: Path, name: str) -> Chunks:
    return make_chunks([Text("text", TEXT)], open_tokenizer(folder / name), n_ctx=N_CTX)


def collected(folder: Path, name: str, keeper: Any, settings: ForwardSettings, **options: Any) -> Collected:
    return collect_imatrix(
        open_checkpoint(folder / name),
        chunks_of(folder, name),
        keeper=keeper,
        settings=settings,
        **options,
    )


@pytest.mark.parametrize("scratch", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1024, 7])
def test_all_kinds_of_storage(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    scratch: bool,
    dtype: torch.dtype,
    rows: int,
) -> None:
    monkeypatch.setattr("calibration.forward.saved_state.ROWS", rows)
    settings = ForwardSettings(hidden_dtype=dtype, scratch=tmp_path if scratch else None)
    for name in ("pico", "tied"):
        want = collected(folder, name, None, settings, process_output=True)
        with pytest.MonkeyPatch.context() as patch:
            stop_in(patch, 2)
            with pytest.raises(StoppedError), StateFile(tmp_path / "s", "s", {}) as keeper:
                collected(folder, name, keeper, settings, process_output=True)
        notes: list[Remark] = []
        moments: list[Progress] = []
        with StateFile(tmp_path / "s", "s", {}, note=notes.append) as keeper:
            found = collected(folder, name, keeper, settings, process_output=True, progress=moments.append)
        assert [str(note) for note in notes] == ["s: continued, 2 of 3 layers are done"]
        assert found.imatrix.entries.keys() == want.imatrix.entries.keys()
        for key, entry in want.imatrix.entries.items():
            np.testing.assert_array_equal(entry.sums, found.imatrix.entries[key].sums)
            np.testing.assert_array_equal(entry.counts, found.imatrix.entries[key].counts)
        for one in ("n_token", "tokens", "pairs", "entropy"):
            np.testing.assert_array_equal(getattr(found.load, one), getattr(want.load, one))
        calculating = [moment for moment in moments if moment.stage == "calculating"]
        assert calculating[-1].done == calculating[-1].total
        assert sorted(calculating, key=lambda moment: moment.done) == calculating
        if name == "pico":  # a third of the layers, and the output matrix
            assert 0.4 < calculating[1].done / calculating[1].total < 0.9


def test_the_time_of_the_stopped_run_counts(folder: Path, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        stop_in(patch, 2)
        with pytest.raises(StoppedError), StateFile(tmp_path / "s", "s", {}) as keeper:
            collected(folder, "pico", keeper, ForwardSettings())
    told: list[dict[str, float]] = []

    def grow_old(parts: dict[str, bytes]) -> None:
        content = json.loads(parts[TOLD])
        told.append(dict(content["timings"]))
        content["timings"] |= {"total": 1000.0, "reading": 500.0}
        parts[TOLD] = json.dumps(content).encode()

    rewritten(tmp_path / "s", grow_old)
    assert 0 < told[0]["products"] < told[0]["total"]
    with StateFile(tmp_path / "s", "s", {}) as keeper:
        timings = collected(folder, "pico", keeper, ForwardSettings()).timings
    assert 1000 < timings.total < 1100
    assert 500 < timings.seconds[Stage.READING] < 600


def test_numpy_opens_a_state(folder: Path, tmp_path: Path) -> None:
    stopped(1, *imatrix_words(folder, tmp_path / "m.gguf", "-q"))
    shutil.copy(tmp_path / "m.gguf.state", tmp_path / "state.npz")
    with np.load(tmp_path / "state.npz") as arrays:
        hidden = arrays["hidden.0"].view(np.float32)
        sums = arrays["observer.0.blk.0.ffn_gate_exps.weight.in_sum2"]
    assert hidden.shape[1] == 64
    assert np.isfinite(hidden).all()
    invoke(*imatrix_words(folder, tmp_path / "m.gguf", "-q"))
    entry = load_imatrix(tmp_path / "m.gguf").entries["blk.0.ffn_gate_exps.weight"]
    np.testing.assert_array_equal(sums, entry.sums)


def test_who_cannot_go_on_says_so(folder: Path, tmp_path: Path) -> None:
    stream = Stream(open_checkpoint(folder / "pico"))
    tokens = chunks_of(folder, "pico").inputs
    with StateFile(tmp_path / "s", "s", {}) as keeper, pytest.raises(TypeError, match="Observer"):
        forward([stream], tokens, observers=[Observer()], keeper=keeper)


def test_the_rate_is_that_of_this_run(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    with ProgressView() as view:
        for seconds, done in ((100, 900), (110, 910), (120, 1000)):
            clock[0] = seconds
            view(Progress("calculating", done, 1000, unit="tokens"))
    lines = capsys.readouterr().err.splitlines()
    assert lines[1:] == [
        "calculating: 910 of 1,000 tokens, 1 tokens/s, 90 s left",
        "calculating: 1,000 of 1,000 tokens, 5 tokens/s",
    ]


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    write_text(path, "old")
    with pytest.raises(StoppedError), replacing(path) as file:
        file.write(b"torn")
        raise StoppedError
    assert [(found.name, found.read_text()) for found in tmp_path.iterdir()] == [("report.json", "old")]
    write_text(path, "näu\n")
    assert path.read_bytes() == "näu\n".encode()
    with pytest.raises(OutputError, match="cannot be written"):
        write_text(tmp_path / "absent" / "x", "")


def test_what_is_no_file_is_not_replaced(folder: Path, tmp_path: Path) -> None:
    """Said before hours of work; root could replace even a device."""
    (tmp_path / "x").mkdir()
    done = invoke(*imatrix_words(folder, tmp_path / "x", "--force"))
    assert (done.exit_code, done.stderr) == (
        4,
        f"moe-gguf: error: {tmp_path / 'x'}: is a folder; name a file in it\n",
    )
    done = invoke(*compare_words(folder, tmp_path / "x"))
    assert (done.exit_code, done.stderr) == (
        4,
        f"moe-gguf: error: {tmp_path / 'x'}: is a folder; name a file in it\n",
    )
    with pytest.raises(OSError, match="no file"), replacing(tmp_path / "x"):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_names_follow_the_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Content durable, then the name, then the folder: after a loss of power the file is the old one or the new one."""
    events: list[str] = []
    rename = Path.replace
    monkeypatch.setattr(
        "gguf_export.files.replacing.durable", lambda file: events.append(Path(file.name).name)
    )
    monkeypatch.setattr("gguf_export.files.replacing.durable_folder", lambda folder: events.append("folder"))

    def watched(path: Path, target: Path) -> Path:
        events.append("name")
        return rename(path, target)

    monkeypatch.setattr(Path, "replace", watched)
    write_text(tmp_path / "x", "new")
    assert events == ["x.partial", "name", "folder"]
