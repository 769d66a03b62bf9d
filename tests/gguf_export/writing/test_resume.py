"""Runs that are stopped, and what the next one makes of what they left: never a wrong byte, never work for nothing."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pico import pico_mixtral

from calibration.importance.imatrix import Entry, Imatrix
from gguf_export.files import durable as durable_file
from gguf_export.files.disk import durable
from gguf_export.files.durable import DurableFile, Piece
from gguf_export.writing import slabs
from gguf_export.writing.export import ExportJob, ExportResult, prepare, run
from gguf_export.writing.journal import Journal, journal_path
from gguf_export.writing.sink import Sink
from quantize.exceptions import NoSpaceError, OutputBusyError, OutputError, OutputExistsError
from quantize.recipes.ftypes import ftype
from quantize.recipes.recipe import Recipe
from quantize.sources.checkpoint import open_checkpoint
from quantize.telling import Remark

FTYPES = ("Q8_0", "F16")


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pico_mixtral(tmp_path_factory.mktemp("models") / "Pico-4x1M-bf16")


@pytest.fixture
def model(pristine: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pristine, tmp_path / pristine.name))


@pytest.fixture(scope="module")
def whole(pristine: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a run that nobody disturbs."""
    folder = tmp_path_factory.mktemp("whole")
    run(plan_of(pristine, folder))
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def plan_of(
    model: Path, folder: Path, *ftypes: str, imatrix: Imatrix | None = None, **options: Any
) -> ExportJob:
    recipes = [Recipe(ftype(name)) for name in ftypes or FTYPES]
    return prepare(open_checkpoint(model), recipes, folder, imatrix=imatrix, **options)


@pytest.fixture(autouse=True)
def every_slab_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(durable_file, "SYNC_SECONDS", 0.0)


class StoppedError(Exception):
    """Stands for whatever ends a run."""


def stop_after(monkeypatch: pytest.MonkeyPatch, n_writes: int, error: BaseException | None = None) -> None:
    """Let the write after `n_writes` others fail."""
    original, seen = Sink.write, []

    def write(self: Sink, *args: Any) -> None:
        seen.append(1)
        if len(seen) > n_writes:
            raise error or StoppedError
        original(self, *args)

    monkeypatch.setattr(Sink, "write", write)


def stopped(model: Path, folder: Path, n_writes: int = 20, **options: Any) -> None:
    """A run that ends after some slabs."""
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, n_writes)
        with pytest.raises(StoppedError):
            run(plan_of(model, folder, **options), jobs=1)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def resumed(model: Path, folder: Path, **options: Any) -> tuple[ExportResult, list[str]]:
    notes: list[str] = []
    run_options = {key: options.pop(key) for key in ("force", "restart") if key in options}
    done = run(
        plan_of(model, folder, **options), note=lambda remark: notes.append(str(remark)), **run_options
    )
    return done, notes


@pytest.mark.parametrize("n_writes", [1, 2, 31, 60])
def test_a_stopped_run_goes_on(model: Path, tmp_path: Path, whole: dict[str, bytes], n_writes: int) -> None:
    stopped(model, tmp_path / "out", n_writes)
    assert not list((tmp_path / "out").glob("*.gguf"))
    total = open_checkpoint(model).n_bytes
    exported, notes = resumed(model, tmp_path / "out")
    assert files(tmp_path / "out") == whole
    assert any("continued" in note for note in notes)
    if n_writes > 2:
        assert exported.bytes_read < total


def test_what_is_kept_is_said(model: Path, tmp_path: Path) -> None:
    notes: list[Remark] = []
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, 20)
        with pytest.raises(StoppedError):
            run(plan_of(model, tmp_path / "out"), jobs=1, note=notes.append)
    assert len(notes) == 2
    assert all("the same command goes on" in str(note) for note in notes)


def test_only_files_that_lack_a_slab_get_it(
    model: Path, tmp_path: Path, whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One file finished, one not begun: the finished one is not encoded again."""
    run(plan_of(model, tmp_path / "out", "Q8_0"))
    stopped(model, tmp_path / "more", 1)
    done: list[str] = []
    original = Sink.write

    def write(self: Sink, *args: Any) -> None:
        done.append(self.path.name)
        original(self, *args)

    monkeypatch.setattr(Sink, "write", write)
    resumed(model, tmp_path / "more")
    assert files(tmp_path / "more") == whole
    assert len([name for name in done if "Q8_0" in name]) == len([name for name in done if "F16" in name]) - 1


@pytest.mark.parametrize("renamed", [1, 2])
def test_stopped_while_files_get_their_names(
    model: Path, tmp_path: Path, whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, renamed: int
) -> None:
    """Some files have their names, others do not, or all have and the journals are still there."""
    out = tmp_path / "out"
    with pytest.MonkeyPatch.context() as patch:
        original, seen = Sink.commit, []

        def commit(sink: Sink) -> None:
            original(sink)
            seen.append(1)
            if len(seen) == renamed:
                raise StoppedError

        patch.setattr(Sink, "commit", commit)
        with pytest.raises(StoppedError):
            run(plan_of(model, out))
    assert len(list(out.glob("*.gguf"))) == renamed
    monkeypatch.setattr(Sink, "write", None)  # nothing is left to be encoded
    exported, _ = resumed(model, out)
    assert exported.bytes_read == 0
    assert files(out) == whole


def damaged(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)
        file.seek(offset)
        file.write(bytes([byte[0] ^ 1]))


def test_damaged_pieces_are_made_again(model: Path, tmp_path: Path, whole: dict[str, bytes]) -> None:
    stopped(model, tmp_path / "out", 40)
    for partial in (tmp_path / "out").glob("*.partial"):
        first = json.loads(journal_path(partial.with_suffix("")).read_text().splitlines()[1])
        damaged(partial, first[0] + 3)
    _, notes = resumed(model, tmp_path / "out")
    assert files(tmp_path / "out") == whole
    assert len([note for note in notes if "1 of" in note and "checksums" in note]) == 2


def cut(content: bytes) -> bytes:
    return content[:-7]


def zeros_at_the_end(content: bytes) -> bytes:
    return content + bytes(100)


def without_pieces(content: bytes) -> bytes:
    return content.split(b"\n")[0] + b"\n"


def half_a_fingerprint(content: bytes) -> bytes:
    return content[:20]


def nothing(content: bytes) -> bytes:
    return b""


def noise(content: bytes) -> bytes:
    return np.random.default_rng(0).bytes(len(content))


def foreign_pieces(content: bytes) -> bytes:
    lines = [[0, 1 << 62, 1], [-5, 10, 0], [10**30, 1, 1], [1, -1, 0], [4096, 0, 0]]
    return content + b"".join(json.dumps(line).encode() + b"\n" for line in lines)


@pytest.mark.parametrize(
    "damage",
    [cut, zeros_at_the_end, without_pieces, half_a_fingerprint, nothing, noise, foreign_pieces],
)
def test_a_damaged_journal_costs_work_only(
    model: Path, tmp_path: Path, whole: dict[str, bytes], damage: Callable[[bytes], bytes]
) -> None:
    stopped(model, tmp_path / "out", 40)
    for path in (tmp_path / "out").glob("*.journal"):
        path.write_bytes(damage(path.read_bytes()))
    resumed(model, tmp_path / "out")
    assert files(tmp_path / "out") == whole


def test_a_partial_file_that_is_gone(model: Path, tmp_path: Path, whole: dict[str, bytes]) -> None:
    stopped(model, tmp_path / "out", 40)
    for path in (tmp_path / "out").glob("*.partial"):
        path.unlink()
    _, notes = resumed(model, tmp_path / "out")
    assert files(tmp_path / "out") == whole
    assert all("afresh" in note for note in notes)


def touched(model: Path) -> dict[str, Any]:
    os.utime(next(model.glob("*.safetensors")), ns=(1, 1))
    return {}


def of_another_name(_model: Path) -> dict[str, Any]:
    return {"override_kv": ["general.author=str:somebody"]}


def with_importances(model: Path) -> dict[str, Any]:
    entries = {
        spec.name: Entry(
            np.ones((spec.n_matrix, spec.n_per_row), np.float32), np.ones(spec.n_matrix, np.int64)
        )
        for spec in open_checkpoint(model).specs()
    }
    return {"imatrix": Imatrix(entries)}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (touched, "the checkpoint changed"),
        (of_another_name, "the metadata changed"),
        (with_importances, "the importance matrix and the metadata changed"),
    ],
)
def test_another_run_begins_afresh_and_says_why(
    model: Path, tmp_path: Path, change: Callable[[Path], dict[str, Any]], reason: str
) -> None:
    stopped(model, tmp_path / "out", 40)
    options = change(model)
    _, notes = resumed(model, tmp_path / "out", **options)
    assert len([note for note in notes if reason in note]) == 2
    run(plan_of(model, tmp_path / "undisturbed", **options))
    assert files(tmp_path / "out") == files(tmp_path / "undisturbed")


def test_importances_with_other_values_are_another_run(model: Path, tmp_path: Path) -> None:
    first, second = (with_importances(model)["imatrix"] for _ in range(2))
    stopped(model, tmp_path / "out", 40, imatrix=first)
    second.entries["blk.0.ffn_down_exps.weight"].sums[2, 5] = 3
    _, notes = resumed(model, tmp_path / "out", imatrix=second)
    assert len([note for note in notes if "the importance matrix changed" in note]) == 2


def test_restart_uses_nothing(model: Path, tmp_path: Path, whole: dict[str, bytes]) -> None:
    stopped(model, tmp_path / "out", 40)
    exported, notes = resumed(model, tmp_path / "out", restart=True)
    assert exported.bytes_read == open_checkpoint(model).n_bytes
    assert not notes
    assert files(tmp_path / "out") == whole


def test_an_old_file_stays_until_the_new_one_is_whole(
    model: Path, tmp_path: Path, whole: dict[str, bytes]
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    for name in whole:
        (out / name).write_bytes(b"precious")
    with pytest.raises(OutputExistsError, match="pass force"):
        resumed(model, out)
    assert set(files(out)) == set(whole)
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, 40)
        with pytest.raises(StoppedError):
            run(plan_of(model, out), force=True)
    assert all((out / name).read_bytes() == b"precious" for name in whole)
    resumed(model, out, force=True)
    assert files(out) == whole


def test_a_stale_journal_does_not_make_an_old_file_the_new_one(
    model: Path, tmp_path: Path, whole: dict[str, bytes]
) -> None:
    """The partial file was removed by hand, and an older file of the same size has the final name."""
    out = tmp_path / "out"
    stopped(model, out, 60)
    for path in out.glob("*.partial"):
        final = path.with_suffix("")
        content = bytearray(path.read_bytes())
        path.unlink()
        final.write_bytes(content)
    with pytest.raises(OutputExistsError, match="pass force"):
        resumed(model, out)
    resumed(model, out, force=True)
    assert files(out) == whole


def test_two_runs_cannot_write_one_file(model: Path, tmp_path: Path, whole: dict[str, bytes]) -> None:
    out = tmp_path / "out"
    export = plan_of(model, out)
    out.mkdir()
    with Journal(export.files[1].path, {}), pytest.raises(OutputBusyError, match="another run is writing"):
        run(export)
    assert not list(out.iterdir())
    run(export)
    assert files(out) == whole


def test_a_journal_is_locked_once(tmp_path: Path) -> None:
    output = tmp_path / "m.gguf"
    with Journal(output, {}) as first:
        with pytest.raises(OutputBusyError, match="another run"):
            Journal(output, {})
        first.begin()
    with Journal(output, {}) as again:
        assert again.recall() == ([], "")
        again.forget()
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(sys.platform == "win32", reason="flock is POSIX")
def test_a_file_system_without_locks_is_said(
    model: Path, tmp_path: Path, whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    import fcntl

    def unknown(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", unknown)
    _, notes = resumed(model, tmp_path / "out")
    assert files(tmp_path / "out") == whole
    assert len([note for note in notes if "locks are unknown here" in note]) == 1


def test_bytes_are_durable_before_the_journal_tells_of_them(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every line of a journal comes after an fsync of the bytes it tells of; names come after the last one."""
    events: list[tuple[str, str]] = []

    def watched(file: Any) -> None:
        events.append(("sync", Path(file.name).suffix))
        durable(file)

    monkeypatch.setattr("gguf_export.files.durable.durable", watched)
    monkeypatch.setattr("gguf_export.writing.sink.durable_folder", lambda _: events.append(("folder", "")))
    original_add, original_replace = Journal.add, Path.replace

    def add(self: Journal, pieces: Sequence[Piece]) -> None:
        events.append(("note", str(len(pieces))))
        original_add(self, pieces)

    def replace(self: Path, target: Path) -> Path:
        events.append(("name", ""))
        return original_replace(self, target)

    monkeypatch.setattr(Journal, "add", add)
    monkeypatch.setattr(Path, "replace", replace)
    run(plan_of(model, tmp_path / "out", "F16"), jobs=1)
    kinds = [kind for kind, _ in events]
    for i, (kind, n_pieces) in enumerate(events):
        if kind == "note" and n_pieces != "0":
            assert kinds[i - 1] == "sync"
    assert kinds[-4:] == ["sync", "note", "name", "folder"]


@pytest.mark.parametrize("after", [0, 1, 30])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_an_error_of_the_disk_keeps_what_is_done(
    model: Path,
    tmp_path: Path,
    whole: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
    code: int,
    after: int,
) -> None:
    original, seen = DurableFile._put, []

    def put(file: DurableFile, offset: int, data: memoryview) -> None:
        seen.append(offset)
        if len(seen) > after:
            raise OSError(code, os.strerror(code))
        original(file, offset, data)

    kind = NoSpaceError if code == errno.ENOSPC else OutputError
    with monkeypatch.context() as patch:
        patch.setattr(DurableFile, "_put", put)
        with pytest.raises(kind, match=r"partial: (no space left|cannot be written)"):
            run(plan_of(model, tmp_path / "out"), jobs=1)
    assert not list((tmp_path / "out").glob("*.gguf"))
    if after < 30:  # within the header and the padding: nothing is worth keeping
        assert not list((tmp_path / "out").iterdir())
    resumed(model, tmp_path / "out")
    assert files(tmp_path / "out") == whole


def test_a_failed_sync_notes_nothing(
    model: Path, tmp_path: Path, whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a failed fsync nobody knows what the disk has, so nothing since the one before is believed."""
    calls: list[int] = []
    noted: list[Piece] = []
    original_add = Journal.add

    def failing(file: Any) -> None:
        calls.append(1)
        if len(calls) == 3:  # and no more: a disk tells of an error once
            raise OSError(errno.EIO, "Input/output error")
        durable(file)

    def add(self: Journal, pieces: Sequence[Piece]) -> None:
        noted.extend(pieces)
        original_add(self, pieces)

    with monkeypatch.context() as patch:
        patch.setattr("gguf_export.files.durable.durable", failing)
        patch.setattr(Journal, "add", add)
        with pytest.raises(OutputError, match="Input/output error"):
            run(plan_of(model, tmp_path / "out", "F16"), jobs=1)
    journal = next((tmp_path / "out").glob("*.journal"))
    assert len(calls) == 3
    assert len(journal.read_text().splitlines()) == 1 + len(noted)
    resumed(model, tmp_path / "out", **{})
    assert files(tmp_path / "out") == whole


def test_space_that_partial_files_hold_is_not_asked_for_again(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped(model, tmp_path / "out", 60)
    export = plan_of(model, tmp_path / "out")
    held = sum(512 * path.stat().st_blocks for path in (tmp_path / "out").glob("*.partial"))
    needed = sum(file.n_bytes for file in export.files)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=needed - held - 1))
    with pytest.raises(NoSpaceError, match="make space"):
        run(export)
    assert len(list((tmp_path / "out").glob("*.partial"))) == 2
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=needed - held + 8192))
    run(export)


def child(*words: Any, hold: Path | None = None) -> subprocess.Popen[str]:
    """A process of its own that exports; as long as the file `hold` is there, it stops after some slabs.

    Ctrl-C opens this gate, too, but not before Python has seen it: the process cannot end before the signal arrives.
    """
    script = """
        import signal, sys, time
        from pathlib import Path
        from gguf_export.files import durable
        from gguf_export.writing.open_files import OpenFiles
        from gguf_export.cli import main
        hold, sys.argv[1:] = Path(sys.argv[1]), sys.argv[2:]
        def stop(*signalled):
            hold.unlink(missing_ok=True)
            signal.default_int_handler(*signalled)
        # A shell that runs the tests in the background has its children ignore Ctrl-C.
        signal.signal(signal.SIGINT, stop)
        durable.SYNC_SECONDS = 0.0
        write, seen = OpenFiles.write, []
        def write_or_wait(*args):
            seen.append(1)
            while len(seen) > 25 and hold.exists():
                time.sleep(0.01)
            return write(*args)
        OpenFiles.write = write_or_wait
        main()
    """
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script), str(hold or "no such file"), *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def export_words(model: Path, folder: Path) -> list[Any]:
    return ["export", model, "-t", "Q8_0", "-t", "F16", "-o", folder, "-j", 2]


def wait_for_both_journals(folder: Path, process: subprocess.Popen[str]) -> None:
    """Until both files have a slab that is noted; how long that takes depends on what else the machine does."""
    while sum(len(path.read_text().splitlines()) > 1 for path in folder.glob("*.journal")) < 2:
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="signals are POSIX")
@pytest.mark.parametrize("kind", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_process_goes_on(
    model: Path, tmp_path: Path, whole: dict[str, bytes], kind: signal.Signals
) -> None:
    out = tmp_path / "out"
    hold = tmp_path / "hold"
    hold.touch()
    first = child(*export_words(model, out), hold=hold)
    wait_for_both_journals(out, first)
    first.send_signal(kind)
    _, said = first.communicate(timeout=300)
    assert first.returncode == (-9 if kind is signal.SIGKILL else 130), said
    assert not list(out.glob("*.gguf"))
    if kind is signal.SIGINT:
        assert said.count("the same command goes on") == 2
        assert said.rstrip().endswith("moe-gguf: stopped")
        assert "Traceback" not in said
    second = child(*export_words(model, out))
    _, said = second.communicate(timeout=300)
    assert second.returncode == 0, said
    assert said.count("continued") == 2
    assert files(out) == whole


@pytest.mark.skipif(sys.platform == "win32", reason="signals are POSIX")
def test_of_two_processes_one_wins(model: Path, tmp_path: Path, whole: dict[str, bytes]) -> None:
    out = tmp_path / "out"
    hold = tmp_path / "hold"
    hold.touch()
    first = child(*export_words(model, out), hold=hold)
    wait_for_both_journals(out, first)
    words = export_words(model, out)
    words[2:6] = ["-t", "F16", "-t", "Q8_0"]  # in another order
    second = child(*words)
    _, said = second.communicate(timeout=300)
    assert second.returncode == 4
    assert "another run is writing this file" in said
    hold.unlink()
    _, said = first.communicate(timeout=300)
    assert first.returncode == 0, said
    assert files(out) == whole


def test_slabs_smaller_than_a_matrix(
    model: Path, tmp_path: Path, whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slabs, "SLAB_BYTES", 2000)
    stopped(model, tmp_path / "out", 150)
    resumed(model, tmp_path / "out")
    assert files(tmp_path / "out") == whole
