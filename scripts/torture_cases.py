"""What `scripts/torture` disturbs: exports and passes over a text, each in a process of its own."""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import random
import shutil
import signal
import subprocess
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from pico import TEXT, pico_mixtral

from gguf_export.cli import main
from gguf_export.files import durable
from gguf_export.writing import slabs, state_file
from gguf_export.writing.export import prepare, run
from quantize.exceptions import MoeGgufError
from quantize.recipes.ftypes import ftype
from quantize.recipes.recipe import Recipe
from quantize.sources.checkpoint import open_checkpoint
from quantize.telling import Remark

N_LAYER = 8  # of the model through which texts pass
N_REPEAT = 12  # of the text


class Case:
    """Work that makes files in a folder, and the files that it makes undisturbed."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.files: dict[str, bytes] = {}
        self.seconds = 0.0

    def run(self, folder: Path) -> str:
        """Do it, in this process; returns what was said."""
        raise NotImplementedError

    def vary(self, rng: random.Random) -> None:
        """Let the next run remember what it has done more or less often."""
        raise NotImplementedError

    def content(self, path: Path) -> bytes:
        """What must be the same."""
        return path.read_bytes()

    def learn(self, folder: Path) -> None:
        """Make the files undisturbed, twice: the first run compiles."""
        for _ in range(2):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            started = time.monotonic()
            self.run(folder)
            self.seconds = time.monotonic() - started
        self.files = {path.name: self.content(path) for path in folder.iterdir()}
        shutil.rmtree(folder)
        n_bytes = sum(map(len, self.files.values()))
        print(
            f"{self.name}: {n_bytes / 2**20:.1f} MiB in {len(self.files)} files, {self.seconds:.1f} seconds"
        )

    def check_final_names(self, folder: Path) -> int:
        """How many files have their names; each must be whole."""
        finals = [path for path in folder.iterdir() if path.name in self.files]
        for path in finals:
            assert self.content(path) == self.files[path.name], f"{path} is not whole"
        return len(finals)

    def check_done(self, folder: Path) -> None:
        """All files, and nothing else."""
        assert {path.name for path in folder.iterdir()} == set(self.files), list(folder.iterdir())
        self.check_final_names(folder)


class ExportCase(Case):
    """A checkpoint and the types that are made of it at once."""

    def __init__(self, name: str, model: Path, types: tuple[str, ...], slab_bytes: int) -> None:
        super().__init__(name)
        self.model, self.types, self.slab_bytes, self.jobs = model, types, slab_bytes, 2

    def run(self, folder: Path) -> str:
        slabs.SLAB_BYTES = self.slab_bytes
        recipes = [Recipe(ftype(name)) for name in self.types]
        notes: list[Remark] = []
        run(prepare(open_checkpoint(self.model), recipes, folder), jobs=self.jobs, note=notes.append)
        return "\n".join(map(str, notes))

    def vary(self, rng: random.Random) -> None:
        durable.SYNC_SECONDS = rng.choice([0.0, 0.0, 0.01, 0.1, 5.0])
        self.jobs = rng.randint(1, 3)


class PassCase(Case):
    """A verb that lets a text pass through a model; of JSON the timings may differ."""

    def __init__(self, name: str, words: list[str | Path], output: str) -> None:
        super().__init__(name)
        self.words, self.output = words, output
        self.vary(random.Random(0))

    def run(self, folder: Path) -> str:
        """The command as a person gives it.

        Raises:
            MoeGgufError: it ended with one of our errors.
        """
        said = io.StringIO()
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            try:
                main([*map(str, self.words), str(folder / self.output), "-q"], standalone_mode=False)
            except SystemExit as end:
                if end.code:
                    raise MoeGgufError("", said.getvalue().strip()) from None
        return said.getvalue()

    def vary(self, rng: random.Random) -> None:
        state_file.KEEP_SHARE = math.inf
        durable.SYNC_SECONDS = rng.choice([0.0, 0.1, 5.0])
        state_file.KEEP_SECONDS = rng.choice([0.0, 0.0, 0.0, 0.02, 5.0])

    def content(self, path: Path) -> bytes:
        if path.suffix != ".json":
            return path.read_bytes()
        found = json.loads(path.read_bytes())
        del found["timings"]
        return json.dumps(found).encode()


def pass_cases(folder: Path) -> list[PassCase]:
    """`export`, `imatrix`, `export --text` and `compare` on a small model of some layers, made anew."""
    torch.set_num_threads(1)  # OpenMP's threads do not survive a fork
    model, text = folder / "Pico", folder / "text.txt"
    pico_mixtral(model, n_layer=N_LAYER, n_embd=128, n_ff=256)
    text.write_text(TEXT * N_REPEAT, encoding="utf-8")
    ExportCase("files", model, ("Q8_0", "F16"), slabs.SLAB_BYTES).run(folder / "files")
    files = sorted((folder / "files").glob("*.gguf"))
    texts: list[str | Path] = ["--text", text, "--ctx", "64"]
    types = ["-t", "Q8_0", "-t", "Q4_K_M", "-o"]
    return [
        PassCase("imatrix", ["imatrix", model, *texts, "-o"], "m.imatrix.gguf"),
        PassCase("export", ["export", model, *types], ""),
        PassCase("export --split-max-tensors", ["export", model, "--split-max-tensors", "30", *types], ""),
        PassCase("export --text", ["export", model, *texts, "--no-save-imatrix", *types], ""),
        PassCase("compare", ["compare", model, *files, *texts, "--chunks", "24", "--json"], "c.json"),
    ]


class Child:
    """A run in a process of its own; 0 is success, 1 one of our errors, 2 anything else."""

    def __init__(self, work: Callable[[], str | None], log: Path) -> None:
        self.log = log
        self.pid = os.fork()
        if self.pid == 0:
            code = 0
            with contextlib.suppress(BaseException), log.open("w") as out:
                try:
                    out.write(work() or "")
                except MoeGgufError as error:
                    code = 1
                    out.write(str(error))
                except BaseException:
                    code = 2
                    out.write(traceback.format_exc())
            os._exit(code)

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)

    def wait(self) -> int:
        """Exit code, -9 for a process that was killed."""
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def said(self) -> str:
        return self.log.read_text()


@contextlib.contextmanager
def small_disk(folder: Path, n_bytes: int) -> Iterator[Callable[[int], None]]:
    """A tmpfs of so many bytes; yields what changes its size."""
    folder.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={n_bytes}", "tmpfs", folder], check=True)

    def resize(n_bytes: int) -> None:
        subprocess.run(["mount", "-o", f"remount,size={n_bytes}", "tmpfs", folder], check=True)

    try:
        yield resize
    finally:
        subprocess.run(["umount", folder], check=True)
