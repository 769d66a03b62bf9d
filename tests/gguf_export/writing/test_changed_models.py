"""A model that changes while it is read, or between two runs: never one file, or one figure, of two models."""

from __future__ import annotations

import math
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result
from command_line import check_one_line, forward_words, invoke
from logits import write_logits
from other_bytes import renamed_over, settled, written_over
from pico import pico_mixtral

from calibration.forward.forward_pass import ForwardPass
from calibration.judging.logits_file import LogitsFile
from gguf_export.checking.checksums import check_sum
from gguf_export.commands.exit_codes import DEFECT
from gguf_export.files import durable
from gguf_export.writing import state_file
from gguf_export.writing.sink import Sink
from quantize.exceptions import ModelChangedError
from quantize.sources.checkpoint import Checkpoint
from quantize.sources.gguf_file import GGUFFile

pytestmark = pytest.mark.skipif(
    sys.platform == "win32", reason="files that are read cannot be replaced there"
)

Change = Callable[[Path], None]
CHANGED = "changed while it was read; start again"


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("changed")
    pico_mixtral(made / "pico", n_layer=3)
    done = invoke("export", made / "pico", "-t", "Q8_0", "-o", made, "--quiet")
    assert done.exit_code == 0, done.output
    next(made.glob("*.gguf")).rename(made / "pico.gguf")
    return made


@pytest.fixture
def folder(pristine: Path, tmp_path: Path) -> Path:
    made = Path(shutil.copytree(pristine, tmp_path / "models"))
    for path in [*made.rglob("*.safetensors"), *made.rglob("*.json"), *made.glob("*.gguf")]:
        settled(path)
    return made


@pytest.fixture
def out(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


@pytest.fixture(autouse=True)
def everything_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(durable, "SYNC_SECONDS", 0.0)
    monkeypatch.setattr(state_file, "KEEP_SECONDS", 0.0)
    monkeypatch.setattr(state_file, "KEEP_SHARE", math.inf)


def words_of(verb: str, folder: Path, out: Path) -> list[Any]:
    """A command that reads a model."""
    if verb == "export":
        return ["export", folder / "pico", "-t", "Q8_0", "-o", out, "-j", 1, "--quiet"]
    if verb == "doctor":
        return ["doctor", folder / "pico", "--full"]
    if verb == "verify":
        return ["verify", folder / "pico.gguf", "--against", folder / "pico", "--quiet"]
    short = ["--chunks", 5]
    if verb == "imatrix of a GGUF file":
        return [*forward_words("imatrix", folder / "pico.gguf", out), *short]
    if verb == "compare files":
        return [*forward_words("compare", folder / "pico", out), folder / "pico.gguf", *short]
    return [*forward_words(verb.removesuffix(" with a text"), folder / "pico", out), *short]


CASES = [
    *(
        ("*2-of-*.safetensors", verb)
        for verb in ("export", "export with a text", "imatrix", "compare", "errors")
    ),
    *(("*2-of-*.safetensors", verb) for verb in ("doctor", "verify")),
    *(("pico.gguf", verb) for verb in ("verify", "imatrix of a GGUF file", "compare files")),
]


def run_that_sees(
    patch: pytest.MonkeyPatch, kind: Any, method: str, n_before: int, change: Callable[[], None]
) -> None:
    """Let the model change before a call of a method of its source, when there were so many."""
    original, seen = getattr(kind, method), []

    def called(self: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append(1)
        if len(seen) == n_before + 1:
            change()
        return original(self, *args, **kwargs)

    patch.setattr(kind, method, called)


@pytest.mark.parametrize(
    ("moment", "change"), [("between two reads", renamed_over), ("behind the last", written_over)]
)
@pytest.mark.parametrize(("name", "verb"), CASES)
def test_nothing_gets_its_name_that_may_be_of_two_models(
    folder: Path,
    out: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    verb: str,
    moment: str,
    change: Change,
) -> None:
    (path,) = folder.rglob(name)
    kind = GGUFFile if name.endswith("gguf") else Checkpoint
    method, n_before = ("read_blocks" if kind is GGUFFile else "read", 5)
    if moment == "behind the last":
        method, n_before = "refuse_changed", 0
    words = words_of(verb, folder, out)
    before = set(out.iterdir())
    with monkeypatch.context() as patch:
        run_that_sees(patch, kind, method, n_before, lambda: change(path))
        done = invoke(*words)
    check_one_line(done, f"{path}: {CHANGED}")
    assert "goes on" not in done.stderr and set(out.iterdir()) == before


@pytest.mark.parametrize("moment", ["log_probs", "refuse_changed"])
def test_a_base_of_logits_that_changes(
    folder: Path, out: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    base = folder / "base.kld"
    rng = np.random.default_rng(0)
    tokens = rng.integers(3, 300, (2, 16)).astype(np.int32)
    write_logits(base, rng.standard_normal((2, 7, 320)).astype(np.float32), tokens)
    words = ["compare", folder / "pico.gguf", "--base", base, "--json", out / "c.json", "--quiet"]
    with monkeypatch.context() as patch:
        run_that_sees(patch, LogitsFile, moment, 0, lambda: renamed_over(base))
        done = invoke(*words)
    check_one_line(done, f"{base}: {CHANGED}")
    assert not list(out.iterdir())
    assert invoke(*words).exit_code == 0


class StoppedError(Exception):
    """Stands for whatever ends a run."""


def stopped(words: list[Any]) -> Result:
    """A run that ends within its work."""
    with pytest.MonkeyPatch.context() as patch:
        original, write, seen = ForwardPass.feed_forward, Sink.write, []

        def feed_forward(self: ForwardPass, bid: int) -> None:
            if bid == 2:
                raise StoppedError
            original(self, bid)

        def written(self: Sink, *args: Any) -> None:
            seen.append(1)
            if len(seen) > 20:
                raise StoppedError
            write(self, *args)

        patch.setattr(ForwardPass, "feed_forward", feed_forward)
        patch.setattr(Sink, "write", written)
        done = invoke(*words)
    assert done.exit_code == DEFECT and "the same command goes on" in done.stderr
    return done


@pytest.mark.parametrize(
    ("name", "verb", "change"),
    [
        ("*2-of-*.safetensors", "export", renamed_over),
        ("*2-of-*.safetensors", "export", written_over),
        pytest.param("*2-of-*.safetensors", "export with a text", written_over, marks=pytest.mark.slow),
        ("*2-of-*.safetensors", "imatrix", renamed_over),
        pytest.param("pico.gguf", "imatrix of a GGUF file", written_over, marks=pytest.mark.slow),
        pytest.param("pico.gguf", "compare files", renamed_over, marks=pytest.mark.slow),
    ],
)
def test_a_stopped_run_does_not_go_on_with_another_model(
    folder: Path, out: Path, tmp_path: Path, name: str, verb: str, change: Change
) -> None:
    (path,) = folder.rglob(name)
    stopped(words_of(verb, folder, out))
    change(path)
    done = invoke(*words_of(verb, folder, out))
    assert done.exit_code == 0, done.output
    assert "continued" not in done.stderr and "begun afresh, because" in done.stderr
    assert "changed since it was stopped" in done.stderr
    made = out.rename(tmp_path / "made")
    out.mkdir()
    assert invoke(*words_of(verb, folder, out)).exit_code == 0  # undisturbed, and of the other model alone
    for path in out.glob("*.gguf"):
        assert path.read_bytes() == (made / path.name).read_bytes()


def test_weights_beside_a_config_that_changed_are_not_read_again(
    folder: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No file gets its name, but the shards are those that were read."""
    words = words_of("export", folder, out)
    config = folder / "pico" / "config.json"
    with monkeypatch.context() as patch:
        run_that_sees(patch, Checkpoint, "read", 5, config.touch)
        done = invoke(*words)
    check_one_line(done, f"{config}: {CHANGED}")
    assert not list(out.glob("*.gguf")) and "the same command goes on" in done.stderr
    done = invoke(*words)
    assert done.exit_code == 0 and "continued" in done.stderr
    assert (out / next(out.iterdir()).name).read_bytes() == (folder / "pico.gguf").read_bytes()


def test_no_hash_is_added_of_a_file_that_changes_meanwhile(folder: Path) -> None:
    path = folder / "pico.gguf"
    with pytest.raises(ModelChangedError, match="changed while it was read"):
        check_sum(path, lambda _: written_over(path))
    assert not (folder / "SHA256SUMS").exists()
