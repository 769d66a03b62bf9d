"""Nothing but its own outputs is touched by a command: no link is followed, no input replaced, no pass run in vain."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from command_line import TEXT, check_one_line, forward_words, invoke
from pico import pico_mixtral

from calibration.importance.imatrix import Imatrix
from gguf_export.commands.exit_codes import DEFECT
from gguf_export.files import durable
from gguf_export.files.locks import LockedFile
from gguf_export.reports import compare_data
from gguf_export.writing import importances
from gguf_export.writing.sink import Sink
from gguf_export.writing.state_file import StateFile

pytestmark = pytest.mark.skipif(
    sys.platform == "win32", reason="links need a privilege, and there are no pipes"
)

MODEL = "Pico-4x1M"
GGUF = "Pico-4x1M-Q8_0.gguf"
SAVED = "saved.gguf"
WORKING = {
    "plain": [f"{GGUF}.partial", f"{GGUF}.journal"],
    "export": [
        *(f"{GGUF}.{end}" for end in ("partial", "journal", "state", "state.lock", "state.partial")),
        f"{SAVED}.partial",
    ],
    "imatrix": [f"m.gguf.{end}" for end in ("partial", "state", "state.lock", "state.partial")],
    "compare": [f"compare.json.{end}" for end in ("partial", "state", "state.lock", "state.partial")],
    "errors": ["errors.json.partial"],
}
"""The names of the files that each verb keeps for itself."""


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pico_mixtral(tmp_path_factory.mktemp("models") / MODEL, n_layer=1)


@pytest.fixture
def model(pristine: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pristine, tmp_path / MODEL))


@pytest.fixture
def out(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


@pytest.fixture(autouse=True)
def every_slab_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(durable, "SYNC_SECONDS", 0.0)


def words_of(verb: str, model: Path, out: Path) -> list[Any]:
    """The command of a verb that writes into `out`, with its text beside the folder."""
    if verb == "plain":
        return ["export", model, "-t", "Q8_0", "-o", out, "-q"]
    words = forward_words(verb, model, out)
    text = out.parent / "text.txt"
    (out / "text.txt").rename(text)
    words[words.index(out / "text.txt")] = text
    return words + (["--save-imatrix", out / SAVED] if verb == "export" else [])


def tree(folder: Path) -> dict[str, Any]:
    """All that lies in a folder, links as links."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        mode = path.lstat().st_mode
        content = path.readlink() if stat.S_ISLNK(mode) else path.read_bytes() if stat.S_ISREG(mode) else ""
        found[str(path.relative_to(folder))] = (stat.S_IFMT(mode), content)
    return found


def plants(path: Path, victim: Path) -> Iterator[str]:
    """Put what a stranger might leave under a name, one after the other; yields how a message calls it."""
    path.symlink_to(victim)
    yield "is a symbolic link, which is not followed; remove it"
    path.unlink()
    path.symlink_to(victim.with_name("absent"))
    yield "is a symbolic link, which is not followed; remove it"
    path.unlink()
    path.symlink_to(path)
    yield "is a symbolic link, which is not followed; remove it"
    path.unlink()
    os.mkfifo(path)
    yield "is a pipe, which is not written to; remove it"
    path.unlink()
    path.mkdir()
    yield "is a folder where a file is to be written; remove it"
    path.rmdir()


@pytest.mark.parametrize(
    ("verb", "name"), [(verb, name) for verb, names in WORKING.items() for name in names]
)
def test_what_lies_under_the_name_of_a_working_file_is_refused(
    verb: str, name: str, model: Path, out: Path, tmp_path: Path
) -> None:
    victim, words = tmp_path / "victim", words_of(verb, model, out)
    victim.write_text("precious")
    for message in plants(out / name, victim):
        for force in ([], ["--force"]):
            before = tree(tmp_path)
            check_one_line(invoke(*words, *force), f"{out / name}: {message}")
            assert tree(tmp_path) == before


@pytest.mark.parametrize("verb", WORKING)
def test_a_second_name_of_a_file_leads_nowhere(verb: str, model: Path, out: Path, tmp_path: Path) -> None:
    """A hard link: the name is removed and the file stays as it was, or the name is refused."""
    victim, words = tmp_path / "victim", words_of(verb, model, out)
    victim.write_text("precious")
    for name in WORKING[verb]:
        (out / name).hardlink_to(victim)
        done = invoke(*words, "--force")
        if name.endswith((".journal", ".lock")):
            check_one_line(done, "has a second name" if name.endswith(".journal") else "is no lock")
            assert (out / name).samefile(victim)
            (out / name).unlink()
        else:
            assert done.exit_code == 0, done.output
            assert not (out / name).exists()
        assert victim.read_text() == "precious"


def test_a_partial_file_with_a_second_name_is_not_continued(model: Path, out: Path, tmp_path: Path) -> None:
    words = words_of("plain", model, out)
    stopped(words, 10)
    (tmp_path / "second").hardlink_to(out / f"{GGUF}.partial")
    before = tree(tmp_path)
    check_one_line(invoke(*words), f"{GGUF}.partial: has a second name (a hard link)")
    assert tree(tmp_path) == before


@pytest.mark.parametrize("verb", ["plain", "export"])
def test_a_link_under_a_name_that_we_derive_is_replaced(
    verb: str, model: Path, out: Path, tmp_path: Path
) -> None:
    words, victim = words_of(verb, model, out), tmp_path / "victim"
    victim.write_text("precious")
    for target in (victim, tmp_path / "absent", model):
        (out / GGUF).symlink_to(target)
        check_one_line(invoke(*words), f"{GGUF}: exists already, and is no plain file; pass --force")
        assert (out / GGUF).is_symlink()
        done = invoke(*words, "--force")
        assert done.exit_code == 0, done.output
        assert not (out / GGUF).is_symlink()
        assert victim.read_text() == "precious"
        assert not (tmp_path / "absent").exists()
        (out / GGUF).unlink()
        (out / SAVED).unlink(missing_ok=True)


def test_a_link_is_not_the_file_of_the_run_before(model: Path, out: Path, tmp_path: Path) -> None:
    """A journal tells of a whole file that has its name already: a link to such a file is none."""
    words = words_of("plain", model, out)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gguf_export.writing.journal.Journal.remove", _stop)
        assert invoke(*words).exit_code == DEFECT
    whole = (out / GGUF).read_bytes()
    (out / GGUF).rename(tmp_path / "elsewhere")
    (out / GGUF).symlink_to(tmp_path / "elsewhere")
    check_one_line(invoke(*words), "exists already")
    assert invoke(*words, "--force").exit_code == 0
    assert not (out / GGUF).is_symlink()
    assert (out / GGUF).read_bytes() == whole


@pytest.mark.parametrize("is_dangling", [False, True])
@pytest.mark.parametrize(("verb", "name"), [("imatrix", "m.gguf"), ("compare", "compare.json")])
def test_a_link_under_a_name_that_the_user_gives_is_replaced(
    verb: str, name: str, is_dangling: bool, model: Path, out: Path, tmp_path: Path
) -> None:
    """A stranger's archive may have brought it: what it leads to is nobody's output."""
    words, target = words_of(verb, model, out), tmp_path / "target"
    if not is_dangling:
        target.write_text("precious")
    (out / name).symlink_to(target)
    check_one_line(invoke(*words), f"{name}: exists already; pass --force")
    done = invoke(*words, "--force")
    assert done.exit_code == 0, done.output
    assert (out / name).is_file() and not (out / name).is_symlink()
    assert target.read_text() == "precious" if not is_dangling else not target.exists()


@pytest.mark.parametrize(("verb", "name"), [("imatrix", "m.gguf"), ("compare", "compare.json")])
def test_the_lock_is_that_of_the_folder_behind_a_link(
    verb: str, name: str, model: Path, out: Path, tmp_path: Path
) -> None:
    (tmp_path / "link").symlink_to(out, target_is_directory=True)
    with LockedFile(out / f"{name}.state.lock", name):
        done = invoke(*words_of(verb, model, tmp_path / "link"), "--force")
        check_one_line(done, "another run is writing this file")
    assert not (out / name).exists()


def test_an_importance_matrix_may_lie_in_the_folder_that_is_made(model: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    words = ["export", model, "-t", "Q8_0", "--text", tmp_path / "text.txt", "--ctx", 16, "-q"]
    made = tmp_path / "new" / "folder"
    done = invoke(*words, "-o", made, "--save-imatrix", made / "i.gguf")
    assert done.exit_code == 0, done.output
    assert sorted(path.suffix for path in made.iterdir()) == [".gguf", ".gguf"]
    assert invoke(*words, "-o", made, "--save-imatrix", made / "i.gguf").exit_code == 0


# ---- outputs against each other, and against what is read ----------------------------------------------------------


@pytest.mark.parametrize(
    ("verb", "more", "message"),
    [
        ("export", ["--save-imatrix", f"out/{GGUF}"], "named twice; choose a file for each"),
        *(
            ("export", ["--save-imatrix", f"out/{name}"], "is the name of a file that the work keeps")
            for name in WORKING["export"][:-1]
        ),
        ("export", ["--save-imatrix", "out"], "out: is a folder; name a file in it"),
        ("export", ["--save-imatrix", "absent/x"], "absent/x: there is no such folder; make it first"),
        # Not /dev/stdout: should one of these be taken some day, root would remove it; nobody can remove /dev/fd/1.
        ("export", ["--save-imatrix", "/dev/fd/1"], "/dev/fd/1: is no file"),
        ("export", ["--save-imatrix", "x" * 255], "cannot be written: File name too long"),
        ("imatrix", ["-o", "absent/x"], "there is no such folder"),
        ("imatrix", ["-o", "/dev/fd/1"], "/dev/fd/1: is no file"),
        ("imatrix", ["-o", "/dev/fd/2"], "/dev/fd/2: is no file"),
        ("imatrix", ["-o", "x" * 300], "cannot be written: File name too long"),
        ("imatrix", ["-o", "x" * 245], "cannot be written: File name too long"),  # of its state
        ("compare", ["--csv", "out/compare.json"], "named twice"),
        ("compare", ["--csv", "out/../out/compare.json"], "named twice"),
        ("compare", ["--csv", "out/compare.json.state"], "is the name of a file that the work keeps"),
        ("compare", ["--csv", "out/compare.json.state.lock"], "is the name of a file that the work keeps"),
        ("compare", ["--csv", "out/compare.json.partial"], "is the name of a file that the work keeps"),
        ("compare", ["--state", "out/compare.json"], "is the name of a file that the work keeps"),
        ("compare", ["--state", "s", "--csv", "s.lock"], "is the name of a file that the work keeps"),
        ("compare", ["--state", "/dev/fd/1"], "is a symbolic link, which is not followed"),
        ("compare", ["--html", "x" * 300], "cannot be written: File name too long"),
        ("compare", ["--plot", "absent/x.svg"], "there is no such folder"),
        ("errors", ["-o", "out/errors.json"], "named twice"),
        ("errors", ["-o", "absent/x.csv"], "there is no such folder"),
    ],
)
def test_outputs_are_held_against_each_other(
    verb: str,
    more: list[str],
    message: str,
    model: Path,
    out: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    words = words_of(verb, model, out)
    before = tree(tmp_path)
    check_one_line(invoke(*words, *more, "--force"), message)
    assert tree(tmp_path) == before


def inputs_of(verb: str) -> dict[str, list[str]]:
    """The inputs of a verb by name, each with the words that name it."""
    found: dict[str, list[str]] = {
        f"{MODEL}/config.json": [],
        f"{MODEL}/tokenizer.model": [],
        f"{MODEL}/model-00001-of-00002.safetensors": [],
        f"{MODEL}/model.safetensors.index.json": [],
        f"{MODEL}/tokenizer_config.json": [],  # is not there, and would be read from then on
        "text.txt": [],
    }
    if verb in ("export", "imatrix", "errors"):
        found["prompts.yml"] = ["--prompts", "prompts.yml"]
    if verb == "errors":
        found["held.txt"] = ["--held-out", "held.txt"]
    if verb in ("export", "compare"):
        found["types.txt"] = ["--tensor-type-file", "types.txt"]
    if verb == "compare":
        found |= {"base.gguf": ["--base", "base.gguf"], "m.dat": ["--imatrix", "m.dat"]}
        found |= {"a.gguf": ["a.gguf"], "other.txt": ["--text", "prose=other.txt"]}
    return found


def outputs_of(verb: str, path: Path) -> list[list[Any]]:
    """The words by which each output of a verb gets a name."""
    if verb == "errors":
        return []
    if verb == "compare":
        return [[name, path] for name in ("--json", "--csv", "--markdown", "--html", "--state")]
    return [["--save-imatrix" if verb == "export" else "-o", path]]


@pytest.mark.parametrize("verb", ["export", "imatrix", "compare"])
def test_what_is_read_is_not_replaced(
    verb: str, model: Path, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = words_of(verb, model, out)
    for name, more in inputs_of(verb).items():
        path = tmp_path / name
        if not path.exists() and "tokenizer_config" not in name:
            path.write_text("")
        second = tmp_path / "second"
        names = [path, Path(name)]
        if path.exists():
            second.hardlink_to(path)
            names.append(second)
        before = tree(tmp_path)
        for output in names:
            for given in outputs_of(verb, output):
                done = invoke(*words, *more, *given, "--force")
                check_one_line(done, "which is read" if output == second else "read")
                assert str(output) in done.stderr
                assert tree(tmp_path) == before
        second.unlink(missing_ok=True)


def test_what_errors_reads_is_not_replaced(
    model: Path, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its outputs are known by their suffix, so a hard link bears one."""
    monkeypatch.chdir(tmp_path)
    words = words_of("errors", model, out)
    for name, more in inputs_of("errors").items():
        if not name.endswith(".json"):
            second = tmp_path / "x.json"
            (tmp_path / name).touch()
            second.hardlink_to(tmp_path / name)
        output = Path(name) if name.endswith(".json") else second
        before = tree(tmp_path)
        check_one_line(invoke(*words, *more, "-o", output, "--force"), "read")
        assert tree(tmp_path) == before
        (tmp_path / "x.json").unlink(missing_ok=True)


def test_working_files_are_held_against_what_is_read(model: Path, out: Path, tmp_path: Path) -> None:
    words = words_of("imatrix", model, out)
    text = tmp_path / "text.txt"
    for name in WORKING["imatrix"]:
        text.rename(out / name)
        done = invoke(*[out / name if word == text else word for word in words], "--force")
        check_one_line(done, f"{name}: is read, too")
        (out / name).rename(text)


def test_the_blobs_of_a_cache_are_inputs(model: Path, out: Path, tmp_path: Path) -> None:
    """In the cache of the Hugging Face hub the files of a checkpoint are links."""
    blobs = tmp_path / "models--x--y" / "blobs"
    blobs.mkdir(parents=True)
    (model / "config.json").rename(blobs / "1234")
    (model / "config.json").symlink_to(blobs / "1234")
    words = words_of("imatrix", model, out)
    for output in (blobs / "1234", model / "config.json"):
        check_one_line(invoke(*words, "-o", output, "--force"), "read")
    assert (model / "config.json").is_symlink()


def test_a_folder_that_cannot_be_written_is_told_before_the_work(
    model: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a file system that is mounted for reading only, where root is refused, too."""

    def read_only(*_: Any, **__: Any) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr("tempfile.TemporaryFile", read_only)
    for verb in WORKING:
        done = invoke(*words_of(verb, model, out))
        check_one_line(done, f"{out}: cannot be written into: Read-only file system; choose another folder")
    assert not list(out.iterdir())


def test_a_file_of_something_else_is_no_state(model: Path, out: Path, tmp_path: Path) -> None:
    """--state names a file of the user's by mistake, or one whose lock has the name of such a file."""
    words = words_of("compare", model, out)
    poem = tmp_path / "poem"
    poem.write_text("precious")
    check_one_line(invoke(*words, "--state", poem), "poem: exists, and is no state of a pass; remove it")
    (tmp_path / "poetry.lock").write_text("precious")
    check_one_line(invoke(*words, "--state", tmp_path / "poetry"), "poetry.lock: exists, and is no lock")
    assert poem.read_text() == (tmp_path / "poetry.lock").read_text() == "precious"
    (tmp_path / "empty").touch()
    assert invoke(*words, "--state", tmp_path / "empty").exit_code == 0


# ---- what happens while the work is done ---------------------------------------------------------------------------


class StoppedError(Exception):
    """Stands for whatever ends a run."""


def _stop(*_: Any) -> None:
    raise StoppedError


def stopped(words: list[Any], n_writes: int, act: Callable[[], Any] = _stop) -> Any:
    """Run a command, and do something when so many slabs are written."""
    original, seen = Sink.write, []

    def write(self: Sink, *args: Any) -> None:
        seen.append(1)
        if len(seen) == n_writes + 1:
            act()
        original(self, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Sink, "write", write)
        return invoke(*words, "-j", 1)


@pytest.mark.parametrize("verb", ["plain", "export"])
def test_a_partial_file_that_goes_on_the_way_is_told_at_once(
    verb: str, model: Path, out: Path, tmp_path: Path
) -> None:
    words, partial = words_of(verb, model, out), out / f"{GGUF}.partial"
    done = stopped(words, 3, partial.unlink)
    check_one_line(done, f"{partial}: was removed while it was written; start the run again")
    assert "kept" not in done.stderr
    assert not list(out.iterdir())

    other = tmp_path / "other"  # what is put in the place is there at once: another thread looks, too

    def replace() -> None:
        other.write_text("precious")
        other.replace(partial)

    check_one_line(
        stopped(words, 3, replace), f"{partial}: was replaced by something else while it was written"
    )
    assert partial.read_text() == "precious"  # it is another's
    partial.unlink()

    def link() -> None:
        (tmp_path / "elsewhere").hardlink_to(partial)
        other.symlink_to(tmp_path / "elsewhere")
        other.replace(partial)

    check_one_line(stopped(words, 3, link), f"{partial}: was replaced by something else while it was written")
    assert partial.is_symlink()
    partial.unlink()
    check_one_line(
        stopped(words, 3, lambda: out.rename(tmp_path / "gone")),
        f"{out}: the folder was removed while files were written into it; start the run again",
    )
    assert not out.exists()


def test_a_partial_file_that_is_replaced_at_the_last_moment_gets_no_name(
    model: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the last sync, before the file gets its name."""
    original = Sink.finish

    def finish(self: Sink) -> None:
        original(self)
        self.partial.unlink()
        self.partial.write_text("precious")

    monkeypatch.setattr(Sink, "finish", finish)
    check_one_line(
        invoke(*words_of("plain", model, out)), "was replaced by something else while it was written"
    )
    assert {path.name: path.read_text() for path in out.iterdir()} == {f"{GGUF}.partial": "precious"}


def test_a_partial_file_that_is_replaced_while_it_is_read_back_is_not_continued(
    model: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words, partial = words_of("plain", model, out), out / f"{GGUF}.partial"
    stopped(words, 10)
    original = durable.confirmed

    def confirmed(*args: Any) -> Any:
        found = original(*args)
        shutil.copy(partial, out / "copy")
        (out / "copy").replace(partial)
        return found

    monkeypatch.setattr("gguf_export.writing.sink.confirmed", confirmed)
    check_one_line(invoke(*words), f"{partial}: was replaced by something else while it was read")
    assert partial.exists()


def test_a_partial_file_without_its_journal_is_not_kept(model: Path, out: Path) -> None:
    """Nobody would know what is in it."""

    def remove() -> None:
        (out / f"{GGUF}.journal").unlink()
        _stop()

    done = stopped(words_of("plain", model, out), 20, remove)
    assert done.exit_code == DEFECT
    assert "kept" not in done.stderr
    assert not list(out.iterdir())


def test_a_state_follows_no_link_that_is_put_there_meanwhile(
    model: Path, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    victim, original = tmp_path / "victim", StateFile.keep
    victim.write_text("precious")

    def keep(self: StateFile, state: Any) -> None:
        self.path.symlink_to(victim)
        original(self, state)

    monkeypatch.setattr(StateFile, "keep", keep)
    monkeypatch.setattr("gguf_export.writing.state_file.KEEP_SECONDS", 0.0)
    assert invoke(*words_of("imatrix", model, out)).exit_code == 0
    assert victim.read_text() == "precious"
    assert {path.name for path in out.iterdir()} == {"m.gguf"}


@pytest.mark.parametrize("plant", [os.mkfifo, lambda path: path.symlink_to("victim"), Path.mkdir])
def test_what_is_put_in_the_way_of_a_state_costs_the_state_and_not_the_pass(
    plant: Callable[[Path], Any], model: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = StateFile.keep

    def keep(self: StateFile, state: Any) -> None:
        with contextlib.suppress(FileExistsError):
            plant(out / "m.gguf.state.partial")
        original(self, state)

    monkeypatch.setattr(StateFile, "keep", keep)
    monkeypatch.setattr("gguf_export.writing.state_file.KEEP_SECONDS", 0.0)
    done = invoke(*words_of("imatrix", model, out))
    assert done.exit_code == 0, done.output
    assert "m.gguf.state: the state of the pass cannot be kept (" in done.stderr
    assert {path.name for path in out.iterdir()} == {"m.gguf", "m.gguf.state.partial"}


@pytest.mark.parametrize("verb", ["plain", "export"])
def test_a_folder_that_takes_the_name_of_a_file_costs_no_work(verb: str, model: Path, out: Path) -> None:
    words = [*words_of(verb, model, out), "--force"]
    done = stopped(words, 3, (out / GGUF).mkdir)
    check_one_line(done, f"{out / GGUF}: a folder was put under the name of the file while it was written")
    assert "are done and kept in" in done.stderr
    assert {f"{GGUF}.partial", f"{GGUF}.journal"} <= {path.name for path in out.iterdir()}
    check_one_line(invoke(*words), "is a folder")
    (out / GGUF).rmdir()
    done = invoke(*words)
    assert done.exit_code == 0
    assert "continued" in done.stderr
    assert {path.name for path in out.iterdir()} == {GGUF} | ({SAVED} if verb == "export" else set())


def failing(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_an_importance_matrix_that_cannot_be_written_costs_nothing(
    model: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = words_of("export", model, out)
    with monkeypatch.context() as patch:
        patch.setattr(importances, "save_imatrix", failing)
        check_one_line(invoke(*words), "saved.gguf: cannot be written: No space left on device")
    assert {path.name for path in out.iterdir()} == {f"{GGUF}.partial", f"{GGUF}.journal"}
    done = invoke(*words)
    assert done.exit_code == 0, done.output
    assert "continued" in done.stderr
    assert {path.name for path in out.iterdir()} == {GGUF, SAVED}


def test_stopped_between_the_importance_matrix_and_the_files(
    model: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = words_of("export", model, out)
    with monkeypatch.context() as patch:
        patch.setattr(Sink, "commit", _stop)
        assert invoke(*words).exit_code == DEFECT
    saved = (out / SAVED).read_bytes()
    (out / SAVED).write_text("precious")  # not what that run wrote
    check_one_line(invoke(*words), "saved.gguf: exists already; pass --force")
    assert (out / SAVED).read_text() == "precious"
    (out / SAVED).write_bytes(saved)
    assert invoke(*words).exit_code == 0
    assert {path.name for path in out.iterdir()} == {GGUF, SAVED}
    assert (out / SAVED).read_bytes() == saved


def test_an_importance_matrix_that_exists_needs_force(model: Path, out: Path) -> None:
    words = words_of("export", model, out)
    (out / SAVED).write_text("precious")
    check_one_line(invoke(*words), "saved.gguf: exists already, and is neither a GGUF nor a legacy imatrix")
    assert {path.name: path.read_text() for path in out.iterdir()} == {SAVED: "precious"}
    assert invoke(*words, "--force").exit_code == 0
    assert (out / SAVED).read_bytes()[:4] == b"GGUF"


@pytest.mark.parametrize("suffix", [".dat", ".gguf"])
def test_both_verbs_write_the_same_importance_matrix(suffix: str, model: Path, out: Path) -> None:
    words = words_of("export", model, out)
    assert invoke(*words, "--save-imatrix", out / f"a{suffix}").exit_code == 0
    assert invoke(*words_of("imatrix", model, out), "-o", out / f"b{suffix}").exit_code == 0
    assert (out / f"a{suffix}").read_bytes() == (out / f"b{suffix}").read_bytes()
    assert ((out / f"a{suffix}").read_bytes()[:4] == b"GGUF") == (suffix == ".gguf")


def test_reports_appear_together_or_not_at_all(
    model: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that cannot be written must not keep the same command from going on."""
    words = [*words_of("compare", model, out), "--csv", out / "c.csv", "--markdown", out / "c.md"]
    with monkeypatch.context() as patch:
        patch.setattr(compare_data, "compare_csv", failing)
        assert invoke(*words).exit_code == DEFECT
    assert not list(out.iterdir())
    with monkeypatch.context() as patch:
        (out / "c.md").mkdir()
        patch.setattr("gguf_export.commands.compare.OutputOptions.check", lambda *_: None)
        done = invoke(*words)
        assert done.exit_code == 4
        assert [path.name for path in out.iterdir()] == ["c.md"]
    (out / "c.md").rmdir()
    assert invoke(*words).exit_code == 0
    assert {path.name for path in out.iterdir()} == {"compare.json", "c.csv", "c.md"}


def test_a_folder_that_is_gone_at_the_end_of_a_pass_is_told(
    model: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = importances.write_imatrix

    def write(path: Path, imatrix: Imatrix, **more: Any) -> None:
        shutil.rmtree(out)
        original(path, imatrix, **more)

    monkeypatch.setattr("gguf_export.writing.calibrate.write_imatrix", write)
    check_one_line(invoke(*words_of("imatrix", model, out)), "m.gguf: cannot be written: No such file")
    assert not out.exists()
