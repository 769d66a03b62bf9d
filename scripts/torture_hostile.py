"""What a hostile neighbourhood does to a command: obstacles, odd names, other weights, missing files.

Here and in `torture_machine`, each trial ends in one of two ways: the files of an undisturbed run, or one line that
says why not and nothing under the final names. Nobody else's file is touched, nobody waits for ever, no process dies of
a signal that it was not sent, and the next run, undisturbed, makes the files.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from torture_cases import PassCase
from torture_commands import Command, check_next_run, check_refusal, command, moment, new_folder

SUFFIXES = (".partial", ".journal", ".state", ".state.lock", ".state.partial")
"""What the names of a run's own files end in, behind that of an output."""

VICTIM = b"somebody else's file\n" * 1000


# -- obstacles


def _link(path: Path, victim: Path) -> None:
    path.symlink_to(victim)


def _dangling(path: Path, victim: Path) -> None:
    path.symlink_to(victim.with_name("created"))


def _hard_link(path: Path, victim: Path) -> None:
    path.hardlink_to(victim)


def _pipe(path: Path, victim: Path) -> None:
    os.mkfifo(path)


def _folder(path: Path, victim: Path) -> None:
    path.mkdir()
    (path / "content").write_bytes(VICTIM)


def _noise(path: Path, victim: Path) -> None:
    path.write_bytes(os.urandom(3000))


OBSTACLES: tuple[Callable[[Path, Path], None], ...] = (_link, _dangling, _hard_link, _pipe, _folder, _noise)


def by_obstacles(case: PassCase, folder: Path, n: int, rng: random.Random) -> str:
    """Something lies under the names that a run will use, sometimes beside the rests of a run that was killed."""
    refused = 0
    victim = folder / "victim"
    names = sorted({name + suffix for name in case.files for suffix in ("", *SUFFIXES)})
    for _ in range(n):
        out = new_folder(folder / "out")
        if rng.random() < 0.5:
            killed = command(case, out, folder / "log")
            moment(case, rng)
            killed.send(signal.SIGKILL)
            killed.wait()
        victim.write_bytes(VICTIM)
        laid: dict[str, str] = {}
        for name in rng.sample(names, rng.randint(1, 3)):
            path = out / name
            if not path.exists():
                lay = rng.choice(OBSTACLES)
                lay(path, victim)
                laid[name] = lay.__name__
        more = ["--force"] if rng.random() < 0.5 else []
        run = command(case, out, folder / "log", *more)
        code, said = run.wait(), run.said()
        what = f"{laid} {more}: {said}"
        assert victim.read_bytes() == VICTIM, f"the target of a link was changed: {what}"
        assert not victim.with_name("created").exists(), f"the target of a link was made: {what}"
        if code:
            check_refusal(code, said)
            refused += 1
        else:
            for name in case.files:
                assert (out / name).is_file() and not (out / name).is_symlink(), what
            case.check_final_names(out)
        for name in laid:
            path = out / name
            if path.is_dir() and not path.is_symlink():
                assert (path / "content").read_bytes() == VICTIM, what
                shutil.rmtree(path)
            elif code or name not in case.files:
                path.unlink(missing_ok=True)
        check_next_run(case, out, folder / "log")
    return f"{n} times something under its names, {refused} refused"


# -- outputs that are inputs


def by_outputs_upon_inputs(case: PassCase, folder: Path, n: int, rng: random.Random) -> str:
    """Outputs are given the names of inputs, of one another, of a run's own files, of folders and devices."""
    refused = 0
    model = Path(case.words[1])
    inputs = [*model.iterdir(), *(path for word in case.words[2:] if (path := Path(word)).is_file())]
    kept = {path: path.read_bytes() for path in inputs}
    for _ in range(n):
        out = new_folder(folder / "out")
        link, hard_link = out / "link", out / "hard"
        link.symlink_to(rng.choice(inputs))
        hard_link.hardlink_to(rng.choice(inputs))
        own = [out / (name + suffix) for name in case.files for suffix in ("", *SUFFIXES)]
        odd = [link, hard_link, out, model, out / "missing" / "x.json", Path("/dev/null"), out / ("x" * 300)]
        places = [rng.choice([rng.choice(inputs), rng.choice(own), rng.choice(odd)]) for _ in range(3)]
        words: list[str | Path] = [*case.words, out / case.output, "-q"]
        if "compare" in case.words:
            words += ["--csv", places[0], "--html", places[1], "--state", places[2]]
        elif case.output:
            words[-2] = places[0]
        elif "--text" in case.words:
            words += ["--save-imatrix", places[0]]
        else:
            words[-2] = rng.choice([model, *own, *odd])
        if rng.random() < 0.7:
            words.append("--force")
        run = Command(words, folder / "log")
        code, said = run.wait(), run.said()
        for path, content in kept.items():
            assert path.read_bytes() == content, f"an input was changed: {words}"
        if code in (3, 4):
            check_refusal(code, said)
        assert code in (0, 2, 3, 4), (code, said)  # 2: the command line itself refuses it
        refused += code != 0
        for path in [*model.iterdir(), *(folder / "text.txt").parent.glob("text.txt.*")]:
            if path not in kept and path != out:
                path.unlink()
    return f"{n} times outputs under odd names, {refused} refused, every input as it was"


# -- other weights


def by_other_weights(case: PassCase, folder: Path, n: int, rng: random.Random) -> str:
    """A shard is replaced, or written over, by one of the same size and time, in a run or between two."""
    model = Path(case.words[1])
    shard = sorted(model.glob("*.safetensors"))[-1]
    first, status = shard.read_bytes(), shard.stat()
    second = bytearray(first)
    n_header = int.from_bytes(first[:8], "little") + 8
    for at in range(n_header, len(second), 2):  # another last bit of every bfloat16
        second[at] ^= 1

    def put(content: bytes, in_place: bool) -> None:
        path = shard if in_place else shard.with_name("other")
        with path.open("r+b" if in_place else "wb") as file:
            file.write(content)
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        if not in_place:
            path.replace(shard)

    of_first = dict(case.files)
    refused = 0
    try:
        put(bytes(second), True)
        case.learn(folder / "undisturbed")
        of_second = dict(case.files)
        assert of_first != of_second
        for _ in range(n):
            case.files = of_first
            put(first, True)
            out = new_folder(folder / "out")
            run = command(case, out, folder / "log")
            moment(case, rng)
            if is_between := rng.random() < 0.5:
                run.send(signal.SIGKILL)
                code, said = run.wait(), run.said()
            put(bytes(second), rng.random() < 0.5)
            if not is_between:
                code, said = run.wait(), run.said()
            if code in (2, 3, 4):
                check_refusal(code, said)
                refused += 1
                assert not any((out / name).exists() for name in of_first), said
            found = {name: case.content(out / name) for name in of_first if (out / name).exists()}
            is_of = [all(found[name] == files[name] for name in found) for files in (of_first, of_second)]
            assert any(is_of), f"a file of two models: {said}"
            for name in found:  # files of the first model are refused by no later run: they are whole
                (out / name).unlink()
            case.files = of_second
            check_next_run(case, out, folder / "log")
    finally:
        put(first, True)
        case.files = of_first
    return f"{n} times other weights of the same size and time, {refused} refused on the way"


# -- files that go


def by_missing_files(case: PassCase, folder: Path, n: int, rng: random.Random) -> str:
    """Somebody tidies up while a command runs: its files, or its folder, go or are others."""
    refused = 0
    victim = folder / "victim"
    victim.write_bytes(VICTIM)
    for _ in range(n):
        out = new_folder(folder / "out")
        run = command(case, out, folder / "log", "--force")
        moment(case, rng)
        what = rng.choice(["folder", "moved", "file", "file", "other", "link", "pipe", "in the way"])
        with suppress(OSError):
            own = [path for path in out.iterdir() if path.name not in case.files]
            if what == "folder":
                shutil.rmtree(out)
            elif what == "moved":
                out.rename(new_folder(folder / "moved") / "out")
            elif what == "in the way":
                (out / rng.choice(sorted(case.files))).mkdir()
            elif own:
                path = rng.choice(own)
                path.unlink()
                if what == "other":
                    path.write_bytes(VICTIM)
                elif what == "link":
                    path.symlink_to(victim)
                elif what == "pipe":
                    os.mkfifo(path)
        code, said = run.wait(), run.said()
        if code:
            check_refusal(code, said)
            refused += 1
        assert victim.read_bytes() == VICTIM, what
        out.mkdir(exist_ok=True)
        for path in list(out.iterdir()):
            if path.is_dir():
                shutil.rmtree(path)
            elif path.is_symlink() or not path.is_file():
                path.unlink()
        case.check_final_names(out)
        for path in list(out.iterdir()):
            if path.read_bytes() == VICTIM:
                path.unlink()
        check_next_run(case, out, folder / "log")
    return f"{n} times files that went, {refused} refused"
