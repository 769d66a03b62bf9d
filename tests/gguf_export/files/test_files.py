"""Questions about files that are asked before they are written, the locks that are taken, and sizes in words."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gguf_export.files import durable, opening
from gguf_export.files.disk import write_error
from gguf_export.files.durable import DurableFile, Piece, confirmed
from gguf_export.files.locks import LockedFile
from gguf_export.files.opening import open_again, open_new, open_to_append, stream_number
from gguf_export.files.outputs import refuse_outputs
from gguf_export.files.replacing import replacing, write_bytes, write_files
from gguf_export.files.sizes import size_in_words
from quantize.exceptions import NoSpaceError, OutputBusyError, OutputError, OutputExistsError


def replaced(partial: Path) -> None:
    """Write the file whose working name this is."""
    write_bytes(partial.with_suffix(""), b"new")


@pytest.mark.parametrize(
    ("n_bytes", "words"),
    [
        (0, "0 B"),
        (512, "512 B"),
        (1023, "1023 B"),
        (1024, "1.00 KiB"),
        (1536, "1.50 KiB"),
        (10.14 * 2**20, "10.14 MiB"),
        (3.25 * 2**30, "3.25 GiB"),
        (5000 * 2**30, "5000.00 GiB"),
    ],
)
def test_sizes_in_words(n_bytes: float, words: str) -> None:
    assert size_in_words(n_bytes) == words


def test_new_files_in_a_folder_are_fine(tmp_path: Path) -> None:
    refuse_outputs([tmp_path / "a", tmp_path / "b"])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("force", [False, True])
def test_what_cannot_be_written_is_refused_even_with_force(tmp_path: Path, force: bool) -> None:
    (tmp_path / "folder").mkdir()
    for outputs, message in (
        ([tmp_path / "absent" / "x"], "absent/x: there is no such folder; make it first"),
        ([tmp_path / "a", tmp_path / "folder"], "folder: is a folder; name a file in it"),
        ([tmp_path / "a", tmp_path / "b", tmp_path / "a"], "a: named twice; choose a file for each"),
        ([tmp_path / "a", tmp_path / "folder" / ".." / "a"], "a: named twice"),
    ):
        with pytest.raises(OutputError, match=message) as caught:
            refuse_outputs(outputs, force=force)
        assert type(caught.value) is OutputError


def test_files_that_exist_need_force(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old")
    with pytest.raises(OutputExistsError) as caught:
        refuse_outputs([tmp_path / "b", tmp_path / "a"])
    assert (caught.value.place, caught.value.setting) == (str(tmp_path / "a"), "force")
    assert caught.value.line(lambda setting: f"--{setting}").endswith(
        "a: exists already; pass --force to replace it"
    )
    refuse_outputs([tmp_path / "b", tmp_path / "a"], force=True)
    refuse_outputs([tmp_path / "b"], own=[tmp_path / "a"])
    with pytest.raises(OutputError, match="a: is the name of a file that the work keeps"):
        refuse_outputs([tmp_path / "a"], force=True, own=[tmp_path / "a"])


@pytest.mark.skipif(sys.platform == "win32", reason="/dev/null")
def test_devices_take_what_comes_where_they_may(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="is no file, so it cannot be replaced"):
        refuse_outputs([Path("/dev/null")], force=True)
    refuse_outputs([Path("/dev/null"), Path("/dev/null"), tmp_path / "a"], devices=True)


def test_a_lock_is_held_once_and_goes(tmp_path: Path) -> None:
    path = tmp_path / "x.lock"
    with LockedFile(path, "x") as held:
        assert held.is_locked
        with pytest.raises(OutputBusyError, match="x: another run is writing this file; wait for it"):
            LockedFile(path, "x")
    assert not list(tmp_path.iterdir())


def test_a_file_that_stays_can_be_locked_again(tmp_path: Path) -> None:
    path = tmp_path / "x"
    first = LockedFile(path, "x")
    first.file.write(b"kept")
    first.close()
    with LockedFile(path, "x") as second:
        second.file.seek(0)
        assert second.file.read() == b"kept"


def test_a_killed_process_leaves_no_lock(tmp_path: Path) -> None:
    path = tmp_path / "x.lock"
    script = """
        import sys
        from pathlib import Path
        from gguf_export.files.locks import LockedFile
        held = LockedFile(Path(sys.argv[1]), "x")
        print("locked", flush=True)
        sys.stdin.read()
    """
    child = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script), str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with child:
        assert child.stdout is not None
        assert child.stdout.readline() == "locked\n"
        with pytest.raises(OutputBusyError):
            LockedFile(path, "x")
        child.kill()
    assert path.exists()
    with LockedFile(path, "x"):
        pass
    assert not path.exists()


@pytest.mark.skipif(sys.platform == "win32", reason="links need a privilege")
def test_a_lock_follows_no_link(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    (tmp_path / "x.lock").symlink_to(victim)
    with pytest.raises(OutputError, match="is a symbolic link, which is not followed; remove it"):
        LockedFile(tmp_path / "x.lock", "x")
    assert not victim.exists()


def test_a_lock_removes_no_file_of_another(tmp_path: Path) -> None:
    path = tmp_path / "x"
    held = LockedFile(path, "x")
    path.unlink()
    path.write_text("precious")
    held.remove()
    assert path.read_text() == "precious"


@pytest.mark.skipif(sys.platform == "win32", reason="links need a privilege, and there are no pipes")
@pytest.mark.parametrize("way", [open_new, open_again, open_to_append, replaced])
def test_nothing_but_a_plain_file_is_opened(tmp_path: Path, way: Callable[[Path], Any]) -> None:
    victim, path = tmp_path / "victim", tmp_path / "x.partial"
    victim.write_text("precious")
    plants: list[tuple[Callable[[], Any], str]] = [
        (lambda: path.symlink_to(victim), "is a symbolic link"),
        (lambda: path.symlink_to(tmp_path / "absent"), "is a symbolic link"),
        (lambda: path.symlink_to("/dev/null"), "is a symbolic link"),
        (lambda: os.mkfifo(path), "is a pipe"),
        (path.mkdir, "is a folder"),
    ]
    for plant, message in plants:
        plant()
        with pytest.raises(OutputError, match=message):
            way(path)
        assert victim.read_text() == "precious"
        assert not (tmp_path / "absent").exists()
        if path.is_dir() and not path.is_symlink():
            path.rmdir()
        else:
            path.unlink()
    path.hardlink_to(victim)
    if way in (open_new, replaced):
        if made := way(path):
            made.close()
        assert not path.exists() or not path.samefile(victim)
    else:
        with pytest.raises(OutputError, match="has a second name"):
            way(path)
    assert victim.read_text() == "precious"


@pytest.mark.skipif(sys.platform == "win32", reason="links need a privilege, and there are no pipes")
@pytest.mark.parametrize("plant", [os.mkfifo, lambda path: path.symlink_to("/dev/zero"), Path.mkdir])
def test_what_is_put_there_between_the_look_and_the_opening_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plant: Callable[[Path], Any]
) -> None:
    plant(tmp_path / "x")
    monkeypatch.setattr(opening, "refuse_strange", lambda _: None)
    for way in (open_again, open_to_append):
        with pytest.raises((OutputError, OSError), match=r"is a pipe|symbolic|directory"):
            way(tmp_path / "x")


def test_a_file_that_goes_while_it_is_written_leaves_what_is_there(tmp_path: Path) -> None:
    path, partial = tmp_path / "x", tmp_path / "x.partial"
    path.write_text("old")
    with pytest.raises(OutputError, match=r"x.partial: was removed"), replacing(path) as file:
        file.write(b"new")
        partial.unlink()
    with pytest.raises(OutputError, match=r"x.partial: was replaced"), replacing(path) as file:
        file.write(b"new")
        partial.unlink()
        partial.write_text("precious")
    assert (path.read_text(), partial.read_text()) == ("old", "precious")


@pytest.mark.skipif(sys.platform == "win32", reason="links need a privilege")
def test_a_link_is_replaced_and_never_followed(tmp_path: Path) -> None:
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_text("old")
    for contents in ([(link, b"new")], [(link, b"new"), (tmp_path / "x", b"")]):
        link.symlink_to(target)
        write_files(contents)
        assert (link.is_symlink(), link.read_text(), target.read_text()) == (False, "new", "old")
        link.unlink()


@pytest.mark.skipif(sys.platform == "win32", reason="there are no named pipes")
def test_a_pipe_that_nobody_reads_makes_nobody_wait(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(OutputError, match="pipe: cannot be written: nobody reads this pipe"):
        write_bytes(pipe, b"new")
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    write_bytes(pipe, b"new")
    assert os.read(reader, 9) == b"new"
    os.close(reader)


def test_the_first_error_is_the_one_that_is_told(tmp_path: Path) -> None:
    """Closing a file whose buffer cannot be written fails, too."""
    with pytest.raises(ZeroDivisionError), replacing(tmp_path / "x") as file:
        file.write(b"new")
        os.close(file.fileno())
        raise ZeroDivisionError
    assert not (tmp_path / "x").exists()


def test_a_disk_that_was_full_behind_the_writers_is_called_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sync at the end fails, too, and must not put another reason in the place of the first."""
    calls: list[int] = []

    def full_once(_: object) -> None:
        calls.append(1)
        if len(calls) == 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(durable, "durable", full_once)
    monkeypatch.setattr(durable, "SYNC_SECONDS", 0.0)
    file = DurableFile(tmp_path / "x", 100, goes_on=False, on_durable=lambda _: None)
    file.write(0, memoryview(b"x"))
    with pytest.raises(NoSpaceError, match="no space left"):
        file.sync()
    file.close()
    file.sync()  # of a closed file there is nothing to be said
    assert len(calls) == 1


@pytest.mark.skipif(sys.platform == "win32", reason="/dev/fd")
def test_a_stream_is_written_where_it_stands(tmp_path: Path) -> None:
    """Such as `--json /dev/stdout > file`: the file is the shell's, which holds it open."""
    assert [stream_number(Path(f"/dev/{name}")) for name in ("stdout", "stderr", "fd/7", "null")] == [
        1,
        2,
        7,
        None,
    ]
    with (tmp_path / "out").open("wb", buffering=0) as file:
        name = Path(f"/dev/fd/{file.fileno()}")
        with pytest.raises(OutputError, match="is no file"):
            refuse_outputs([name], force=True)
        refuse_outputs([name], devices=True)
        file.write(b"before ")
        write_bytes(name, b"within ")
        file.write(b"behind")
    assert (tmp_path / "out").read_bytes() == b"before within behind"
    with pytest.raises(OutputError, match="is closed"):
        refuse_outputs([name], devices=True)


@pytest.mark.skipif(sys.platform == "win32", reason="flock is POSIX")
@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_file_systems_without_locks_are_used_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    import fcntl

    def unknown(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", unknown)
    with LockedFile(tmp_path / "x", "x") as file:
        assert not file.is_locked
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_an_error_of_its_own(tmp_path: Path) -> None:
    for code, kind in (
        (errno.ENOSPC, NoSpaceError),
        (errno.EDQUOT, NoSpaceError),
        (errno.EFBIG, NoSpaceError),
        (errno.EIO, OutputError),
    ):
        error = write_error(tmp_path / "x", OSError(code, os.strerror(code)))
        assert type(error) is kind
        assert str(error) == f"{tmp_path / 'x'}: cannot be written: {os.strerror(code)}"


def test_pieces_are_told_when_they_are_durable_and_confirmed_when_read_back(tmp_path: Path) -> None:
    path, told = tmp_path / "x", list[Piece]()
    file = DurableFile(path, 100, goes_on=False, on_durable=told.extend)
    file.frame([(0, b"head"), (96, b"tail")])
    file.write(10, memoryview(b"first"))
    file.write(50, memoryview(b"second"))
    assert not told
    file.sync()
    file.close()
    assert [(piece.offset, piece.n_bytes) for piece in told] == [(10, 5), (50, 6)]
    assert path.stat().st_size == 100
    assert confirmed(path, told) == told
    with path.open("r+b") as damaged:
        damaged.seek(12)
        damaged.write(b"x")
    assert confirmed(path, told) == told[1:]
    again = DurableFile(path, 100, goes_on=True, on_durable=told.extend)
    again.close()
    assert path.read_bytes()[:4] == b"head"
