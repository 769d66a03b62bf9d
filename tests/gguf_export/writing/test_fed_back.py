"""Exports with error feedback: their files, what takes their place where they do no good, and runs that are stopped."""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
import zipfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import Result
from command_line import check_one_line, invoke
from pico import TEXT, pico_mixtral, read_checkpoint, write_checkpoint

from calibration.feedback import fitting
from calibration.feedback.fitting import FeedbackSettings
from calibration.feedback.two_streams import FeedbackPass
from calibration.importance.imatrix_files import load_imatrix
from calibration.text.text_settings import TextSettings
from gguf_export import export
from gguf_export.checking.verify import verify
from gguf_export.commands.exit_codes import DEFECT
from gguf_export.files.durable import DurableFile
from gguf_export.metadata.feedback_keys import feedback_keys, has_feedback
from gguf_export.writing import fed_back, state_file
from quantize.exceptions import OutputError
from quantize.sources.gguf_file import GGUFFile

pytestmark = pytest.mark.numeric

N_CTX = 32
NAME = "Pico-4x1M-Q4_K_M.gguf"
QUICK = FeedbackSettings(rounds=1, dampings=(0.1,))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("fed_back")
    pico_mixtral(made / "Pico-4x1M-bf16", n_embd=256, n_ff=256, n_expert=2, n_expert_used=1, n_shards=1)
    (made / "text.txt").write_text(TEXT * 3, encoding="utf-8")
    return made


@pytest.fixture(scope="module", autouse=True)
def quick() -> Iterator[None]:
    """One damping and one round, no threads that small products would wait for, and a state behind each layer."""
    n_thread = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            fitting, "FeedbackSettings", partial(FeedbackSettings, rounds=1, dampings=QUICK.dampings)
        )
        patch.setattr(state_file, "KEEP_SECONDS", 0.0)
        patch.setattr(state_file, "KEEP_SHARE", math.inf)
        yield
    torch.set_num_threads(n_thread)


def words(folder: Path, output: Path, *more: Any) -> list[Any]:
    return [
        *("export", folder / "Pico-4x1M-bf16", "--text", folder / "text.txt", "--ctx", N_CTX),
        *("--feedback", "-j", 1, "-o", output),
        *(more if {"-t", "--like", "--types"} & set(more) else ("-t", "Q4_K_M", *more)),
    ]


def done(*given: Any) -> Result:
    result = invoke(*given)
    assert result.exit_code == 0, result.output
    return result


def files(path: Path) -> dict[str, bytes]:
    return {one.name: one.read_bytes() for one in path.iterdir()}


@pytest.fixture(scope="module")
def whole(folder: Path) -> Path:
    """The folder of an export that nobody disturbs, beside its importances and what was printed."""
    result = done(*words(folder, folder / "whole", "--save-imatrix", folder / "whole.imatrix.gguf"))
    (folder / "printed").write_text(result.stdout, encoding="utf-8")
    return folder / "whole"


@pytest.fixture(scope="module")
def usual(folder: Path, whole: Path) -> Path:
    """The file with llama.cpp's codes by the same importances."""
    model, imatrix = folder / "Pico-4x1M-bf16", folder / "whole.imatrix.gguf"
    done("export", model, "-t", "Q4_K_M", "--imatrix", imatrix, "-o", folder / "usual")
    return folder / "usual" / NAME


# -- the file


def test_the_file_says_how_it_was_made(folder: Path, whole: Path, usual: Path) -> None:
    assert [path.name for path in whole.iterdir()] == [NAME]
    made, plain = GGUFFile(whole / NAME), GGUFFile(usual)
    told = {key: value for key, value in made.keys.items() if key not in plain.keys}
    n_chunk = made.keys["quantize.imatrix.chunks_count"]
    assert told == {
        "moe_gguf.feedback.method": "asymmetric",
        "moe_gguf.feedback.rounds": 1,
        "moe_gguf.feedback.n_token": n_chunk * N_CTX,
        "moe_gguf.feedback.text": "text.txt",
    }
    assert {key: made.keys[key] for key in plain.keys} == plain.keys
    assert [(spec.name, spec.shape, spec.qtype) for spec in made.specs()] == [
        (spec.name, spec.shape, spec.qtype) for spec in plain.specs()
    ]
    printed = (folder / "printed").read_text(encoding="utf-8")
    assert "error feedback: " in printed and "of the plain encoding's" in printed and "held out" in printed


def test_the_file_is_nearer_to_the_original_on_other_text(
    folder: Path, whole: Path, usual: Path, tmp_path: Path
) -> None:
    text, figures = tmp_path / "other.txt", tmp_path / "figures.json"
    text.write_text(
        "the long winter of the small town chooses a river for each token. " * 12, encoding="utf-8"
    )
    plain = tmp_path / "plain.gguf"
    shutil.copy(usual, plain)
    given = ["--text", text, "--ctx", N_CTX, "--json", figures]
    done("compare", folder / "Pico-4x1M-bf16", whole / NAME, plain, *given)
    models = json.loads(figures.read_text(encoding="utf-8"))["models"]
    fed_back, by_llama_cpp = (next(iter(model["texts"].values()))["kld"] for model in models)
    assert fed_back < 0.7 * by_llama_cpp


@pytest.mark.slow
def test_a_trained_model_gains_on_works_that_it_never_saw(demo_model: Path, tmp_path: Path) -> None:
    texts = demo_model.parent / "demo_texts"
    kinds = ("scripture", "literature", "code", "documentation")
    seen = "".join((texts / f"{kind}.txt").read_text(encoding="utf-8")[:4000] for kind in kinds)
    (tmp_path / "seen.txt").write_text(seen, encoding="utf-8")
    (tmp_path / "other.txt").write_text(
        (texts / "eval.txt").read_text(encoding="utf-8")[:6000], encoding="utf-8"
    )
    saved, ctx = tmp_path / "m.gguf", ("--ctx", 128)
    given = ["-t", "Q3_K_M", "--text", tmp_path / "seen.txt", *ctx, "--feedback", "--save-imatrix", saved]
    done("export", demo_model, *given, "-o", tmp_path / "out")
    done("export", demo_model, "-t", "Q3_K_M", "--imatrix", saved, "-o", tmp_path / "plain")
    (made,), (plain,) = ((tmp_path / name).iterdir() for name in ("out", "plain"))
    plain = plain.rename(tmp_path / "plain.gguf")
    figures = tmp_path / "figures.json"
    done("compare", demo_model, made, plain, "--text", tmp_path / "other.txt", *ctx, "--json", figures)
    models = json.loads(figures.read_text(encoding="utf-8"))["models"]
    fed_back, by_llama_cpp = (next(iter(model["texts"].values()))["kld"] for model in models)
    assert fed_back < 0.75 * by_llama_cpp
    assert "nothing is wrong" in done("verify", made, "--against", demo_model).stdout


def test_verify_and_inspect_know_such_files(folder: Path, whole: Path) -> None:
    assert done("verify", whole / NAME).stdout.strip() == "nothing is wrong"
    for more in ([], ["--imatrix", folder / "whole.imatrix.gguf"]):
        found = done("verify", whole / NAME, "--against", folder / "Pico-4x1M-bf16", *more)
        assert "nothing is wrong" in found.stdout
        assert "error feedback chose its codes" in found.stdout and "another program" not in found.stdout
        assert "--imatrix" not in found.stdout
    assert "asymmetric error feedback on" in done("inspect", whole / NAME).stdout


def flipped(path: Path, name: str, at: int, bits: int) -> str:
    """Change a byte of a tensor; returns its name."""
    file = GGUFFile(path)
    place = file.tensors[name].offset + at
    content = bytearray(path.read_bytes())
    content[place] ^= bits
    path.write_bytes(bytes(content))
    return name


@pytest.mark.parametrize(
    ("name", "at", "bits"),
    [
        ("blk.0.ffn_up_exps.weight", 100 * 144 + 1, 0x10),  # the exponent of a scale
        ("blk.0.ffn_up_exps.weight", 100 * 144 + 1, 0x80),  # its sign
        ("blk.1.attn_q.weight", 7 * 144 + 40, 0x88),  # two codes
        ("blk.0.attn_output.weight", 200 * 144 + 77, 0x80),
        ("output.weight", 17 * 210 + 209, 0x40),
        ("token_embd.weight", 30 * 144 + 60, 0x08),
    ],
)
def test_a_changed_byte_is_found(
    folder: Path, whole: Path, tmp_path: Path, name: str, at: int, bits: int
) -> None:
    path = tmp_path / NAME
    path.write_bytes((whole / NAME).read_bytes())
    flipped(path, name, at, bits)
    faults = [f for f in verify(path, against=folder / "Pico-4x1M-bf16") if f.severity != "info"]
    assert [fault.place.partition(",")[0] for fault in faults] == [name], faults


def test_experts_in_each_others_place_are_found(folder: Path, whole: Path, tmp_path: Path) -> None:
    path = tmp_path / NAME
    stored = GGUFFile(whole / NAME).tensors["blk.1.ffn_gate_exps.weight"]
    content = np.fromfile(whole / NAME, np.uint8)
    of_tensor = content[stored.offset : stored.offset + stored.spec.n_bytes].reshape(2, -1)
    of_tensor[:] = of_tensor[::-1].copy()
    content.tofile(path)
    faults = [f for f in verify(path, against=folder / "Pico-4x1M-bf16") if f.severity == "error"]
    assert any("the weights of expert 1 are in its place" in str(fault) for fault in faults), faults


def test_a_key_of_a_stranger_is_no_method() -> None:
    assert has_feedback({kv.key: kv.value for kv in feedback_keys(3, 5, ["a"])})
    assert not has_feedback({}) and not has_feedback({"moe_gguf.feedback.method": 7})


# -- the plain file in its place


def test_the_plain_file_is_written_where_feedback_does_no_good(
    folder: Path, usual: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fed_back._Run, "_judged", lambda *_: (0.02, 0.01))
    saved = tmp_path / "whole.imatrix.gguf"
    result = done(*words(folder, tmp_path / "out", "--save-imatrix", saved))
    assert [path.name for path in (tmp_path / "out").iterdir()] == [NAME]
    assert "2.000 of the plain encoding's, which is therefore what was written" in result.stdout
    assert f"{NAME}: is made without error feedback, which is worse here" in result.stderr
    assert saved.read_bytes() == (folder / "whole.imatrix.gguf").read_bytes()
    model = folder / "Pico-4x1M-bf16"
    done("export", model, "-t", "Q4_K_M", "--imatrix", saved, "-o", tmp_path / "usual")
    made = (tmp_path / "out" / NAME).read_bytes()
    assert made == (tmp_path / "usual" / NAME).read_bytes()
    assert not has_feedback(GGUFFile(tmp_path / "out" / NAME).keys)
    assert len(made) == usual.stat().st_size
    assert "exists already" in invoke(*words(folder, tmp_path / "out")).stderr


def test_a_worse_file_replaces_nothing_by_halves(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With --force the older file stands until the plain one takes its place."""
    monkeypatch.setattr(fed_back._Run, "_judged", lambda *_: (0.02, 0.01))
    (tmp_path / NAME).write_bytes(b"mine")
    check_one_line(invoke(*words(folder, tmp_path, "-q")), "--force")

    def fails(*_: Any, **__: Any) -> None:
        raise OutputError("disk", "is broken")

    with monkeypatch.context() as patch:
        patch.setattr(fed_back, "run", fails)
        check_one_line(invoke(*words(folder, tmp_path, "-q", "--force")), "is broken")
    assert files(tmp_path) == {NAME: b"mine"}
    made = export(
        folder / "Pico-4x1M-bf16",
        "Q4_K_M",
        tmp_path,
        text=TextSettings(paths=(folder / "text.txt",), n_ctx=N_CTX),
        feedback=True,
        force=True,
        jobs=1,
    )
    assert made.feedback is not None and made.feedback.is_worse and made.feedback.ratio == 2
    assert made.calibration is not None and [path.name for path in tmp_path.iterdir()] == [NAME]
    assert not has_feedback(GGUFFile(tmp_path / NAME).keys)


# -- runs that are stopped


class StoppedError(Exception):
    """Stands for whatever ends a run."""


def stopped(place: str, *given: Any, error: BaseException | None = None) -> Result:
    """A run that ends in layer 1, or behind the last one."""
    original = getattr(FeedbackPass, place)

    def stop(*arguments: Any) -> None:
        if arguments[-1] != 0:
            raise error or StoppedError
        original(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FeedbackPass, place, stop)
        return invoke(*given)


@pytest.fixture
def entered(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The layers that a pass enters."""
    bids: list[int] = []
    original = FeedbackPass.attention

    def attention(self: FeedbackPass, bid: int) -> None:
        bids.append(bid)
        original(self, bid)

    monkeypatch.setattr(FeedbackPass, "attention", attention)
    return bids


def lose(path: Path, name: str) -> None:
    """The disk forgets what was written of a tensor."""
    stored = GGUFFile(path).tensors[name]
    content = bytearray(path.read_bytes())
    content[stored.offset : stored.offset + 300] = bytes(300)
    path.write_bytes(bytes(content))


@pytest.mark.parametrize(
    ("lost", "first"),
    [
        ("nothing", 1),
        ("blk.0.ffn_up_exps.weight", 0),
        ("token_embd.weight", 0),
        ("blk.1.attn_q.weight", 1),
        ("the files", 0),
        ("the state", 0),
    ],
)
def test_a_run_goes_on_behind_the_last_layer(
    folder: Path, whole: Path, tmp_path: Path, entered: list[int], lost: str, first: int
) -> None:
    """A state is believed where its layers are all in the files, which is what makes the rest fit to them."""
    out = tmp_path / "out"
    result = stopped("feed_forward", *words(folder, out), error=KeyboardInterrupt())
    assert result.exit_code == 130
    assert f"{NAME}: 1 of 2 layers are done and kept in {NAME}.state" in result.stderr
    partial_file = out / f"{NAME}.partial"
    assert partial_file.exists() and not (out / NAME).exists()
    if lost == "the files":
        partial_file.unlink()
    elif lost == "the state":
        (out / f"{NAME}.state").unlink()
    elif lost != "nothing":
        lose(partial_file, lost)
    entered.clear()
    result = done(*words(folder, out))
    assert entered == list(range(first, 2))
    assert ("continued, 1 of 2 layers" in result.stderr) == (first == 1)
    assert tensors(out / NAME) == tensors(whole / NAME)
    assert [path.name for path in out.iterdir()] == [NAME]


def tensors(path: Path) -> dict[str, bytes]:
    """All blocks of a file by the names of its tensors."""
    file = GGUFFile(path)
    content = path.read_bytes()
    return {name: content[one.offset : one.offset + one.spec.n_bytes] for name, one in file.tensors.items()}


def test_a_run_goes_on_behind_the_pass(
    folder: Path, whole: Path, tmp_path: Path, entered: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: Any) -> None:
        raise StoppedError

    with monkeypatch.context() as patch:
        patch.setattr(fed_back._Run, "_judged", stop)
        assert invoke(*words(folder, tmp_path)).exit_code == DEFECT
    entered.clear()
    result = done(*words(folder, tmp_path))
    assert entered == [] and "continued, 2 of 2 layers" in result.stderr
    assert tensors(tmp_path / NAME) == tensors(whole / NAME)
    printed = (folder / "printed").read_text(encoding="utf-8")
    (told,) = (line for line in printed.splitlines() if line.startswith("error feedback:"))
    assert told in result.stdout


def test_what_decides_the_codes_is_the_same_in_both_runs(
    folder: Path, tmp_path: Path, entered: list[int]
) -> None:
    stopped("feed_forward", *words(folder, tmp_path))
    entered.clear()
    result = done(*words(folder, tmp_path, "--prior", 50))
    assert entered == [0, 1]
    assert "begun afresh" in result.stderr
    stopped("feed_forward", *words(folder, tmp_path, "--force"))
    entered.clear()
    done(*words(folder, tmp_path, "--force", "--tensor-type", "attn_q=Q5_K"))
    assert entered == [0, 1]


def test_runs_with_and_without_feedback_leave_each_others_state_alone(
    folder: Path, whole: Path, tmp_path: Path, entered: list[int]
) -> None:
    stopped("feed_forward", *words(folder, tmp_path))
    plain = [word for word in words(folder, tmp_path) if word != "--feedback"]
    result = done(*plain, "--save-imatrix", tmp_path / "m.gguf")
    assert "begun afresh, because the" in result.stderr and "continued" not in result.stderr
    assert not has_feedback(GGUFFile(tmp_path / NAME).keys)
    assert {path.name for path in tmp_path.iterdir()} == {NAME, "m.gguf"}


def child(*given: Any, hold: Path) -> subprocess.Popen[str]:
    """A process of its own; as long as the file `hold` is there, it waits within layer 1."""
    script = """
        import math, sys, time
        from functools import partial
        from pathlib import Path
        import torch
        from calibration.feedback import fitting
        from calibration.feedback.two_streams import FeedbackPass
        from gguf_export.writing import state_file
        from gguf_export.cli import main
        torch.set_num_threads(1)
        hold, sys.argv[1:] = Path(sys.argv[1]), sys.argv[2:]
        state_file.KEEP_SECONDS, state_file.KEEP_SHARE = 0.0, math.inf
        settings = fitting.FeedbackSettings
        fitting.FeedbackSettings = partial(settings, rounds=1, dampings=(0.1,))
        feed_forward = FeedbackPass.feed_forward
        def wait(self, bid):
            while bid == 1 and hold.exists():
                time.sleep(0.01)
            feed_forward(self, bid)
        FeedbackPass.feed_forward = wait
        main()
    """
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script), str(hold), *map(str, given)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="signals are POSIX")
def test_a_killed_process_goes_on(folder: Path, whole: Path, tmp_path: Path, entered: list[int]) -> None:
    hold, out = tmp_path / "hold", tmp_path / "out"
    hold.touch()
    first = child(*words(folder, out), hold=hold)
    state = state_file.state_path(out / NAME)
    while not (state.exists() and zipfile.ZipFile(state).read("pass.json").startswith(b'{"n_done": 1')):
        assert first.poll() is None, first.communicate()
        time.sleep(0.01)
    assert "another run is writing this file" in invoke(*words(folder, out)).stderr
    first.send_signal(signal.SIGKILL)
    first.communicate(timeout=300)
    result = done(*words(folder, out))
    assert "continued, 1 of 2 layers" in result.stderr and entered == [1]
    assert tensors(out / NAME) == tensors(whole / NAME)
    assert [path.name for path in out.iterdir()] == [NAME]


# -- disks, names, parts


def test_a_full_disk(
    folder: Path, whole: Path, tmp_path: Path, entered: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends the run with one line; what is done is kept."""
    original = DurableFile.write

    def write(self: DurableFile, offset: int, data: Any) -> None:
        if entered[-1:] == [1]:
            raise OutputError(str(tmp_path), os.strerror(errno.ENOSPC))
        original(self, offset, data)

    with monkeypatch.context() as patch:
        patch.setattr(DurableFile, "write", write)
        result = invoke(*words(folder, tmp_path, "-q"))
    check_one_line(result, "No space left on device")
    assert "1 of 2 layers are done and kept" in result.stderr
    done(*words(folder, tmp_path, "-q"))
    assert tensors(tmp_path / NAME) == tensors(whole / NAME)


def test_files_in_parts(folder: Path, whole: Path, tmp_path: Path) -> None:
    done(*words(folder, tmp_path, "--split-max-tensors", 9))
    parts = sorted(tmp_path.iterdir())
    assert len(parts) > 1 and all("-of-" in part.name for part in parts)
    found = done("verify", parts[0], "--against", folder / "Pico-4x1M-bf16")
    assert "nothing is wrong" in found.stdout
    both = {name: blocks for part in parts for name, blocks in tensors_of_part(part).items()}
    assert both == tensors(whole / NAME)


def tensors_of_part(path: Path) -> dict[str, bytes]:
    file, content = GGUFFile(path, any_part=True), path.read_bytes()
    return {
        name: content[one.offset : one.offset + one.spec.n_bytes]
        for name, one in file.tensors.items()
        if getattr(one, "path", path) == path
    }


def test_a_gguf_file_as_the_model(folder: Path, whole: Path, tmp_path: Path) -> None:
    """The same weights become the same blocks; those that keep their type are copied."""
    model = folder / "Pico-4x1M-bf16"
    done("export", model, "-t", "BF16", "-o", tmp_path)
    source = tmp_path / "Pico-4x1M-BF16.gguf"
    given = words(folder, tmp_path / "out")
    done(given[0], source, *given[2:])
    assert tensors(tmp_path / "out" / NAME) == tensors(whole / NAME)
    assert "nothing is wrong" in done("verify", tmp_path / "out" / NAME, "--against", source).stdout


def test_blocks_that_keep_their_type_are_copied(folder: Path, tmp_path: Path) -> None:
    model = folder / "Pico-4x1M-bf16"
    done("export", model, "-t", "Q4_K_S", "--tensor-type", "ffn_=F16", "-o", tmp_path)
    source = next(tmp_path.glob("*.gguf"))
    given = words(folder, tmp_path / "out", "-t", "Q4_K_S", "--allow-requantize")
    done(given[0], source, *given[2:])
    (made,) = (tmp_path / "out").iterdir()
    before, after = tensors(source), tensors(made)
    for spec in GGUFFile(made).specs():
        if "ffn_" not in spec.name:
            assert before[spec.name] == after[spec.name], spec.name
    assert has_feedback(GGUFFile(made).keys)
    assert "nothing is wrong" in done("verify", made, "--against", source).stdout


def test_a_dry_run_writes_nothing(folder: Path, whole: Path, tmp_path: Path) -> None:
    result = done(*words(folder, tmp_path / "out", "--dry-run"))
    assert NAME in result.stdout and "blk.1.ffn_down_exps.weight" in result.stdout
    assert not list(tmp_path.iterdir())


def test_what_feedback_encodes_is_not_told_to_lack_importances(
    folder: Path, whole: Path, tmp_path: Path
) -> None:
    given = words(folder, tmp_path / "out", "--dry-run")
    told = "quantized without: output.weight, token_embd.weight"
    assert told not in done(*given).stderr
    assert told in done(*(word for word in given if word != "--feedback")).stderr


def test_the_importances_are_kept(folder: Path, whole: Path) -> None:
    imatrix = load_imatrix(folder / "whole.imatrix.gguf")
    assert imatrix.chunk_count == GGUFFile(whole / NAME).keys["quantize.imatrix.chunks_count"]
    assert GGUFFile(whole / NAME).keys["quantize.imatrix.file"] == "whole.imatrix.gguf"
    entry = imatrix.entries["blk.1.ffn_down_exps.weight"]
    assert int(entry.counts.sum()) == imatrix.chunk_count * N_CTX  # one expert a token


# -- other types, other settings


@pytest.mark.parametrize("name", ["Q8_0", "Q4_0", "IQ4_XS", "Q2_K"])
def test_types_of_all_kinds(folder: Path, tmp_path: Path, name: str) -> None:
    """Those without parts aim at the target, too; whichever file is written is a healthy one."""
    done(*words(folder, tmp_path, "-t", name))
    (made,) = tmp_path.iterdir()
    found = done("verify", made, "--against", folder / "Pico-4x1M-bf16")
    assert "nothing is wrong" in found.stdout


@pytest.mark.parametrize("name", ["F16", "BF16", "COPY"])
def test_nothing_to_quantize(folder: Path, tmp_path: Path, name: str) -> None:
    check_one_line(
        invoke(*words(folder, tmp_path / "out", "-t", name, "-q")), "means nothing where no tensor"
    )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("more", "named"),
    [
        (["-t", "Q4_K_M", "-t", "Q5_K_M"], "one file at a time"),
        (["--prune-layers", 1], "--prune-layers"),
        (["--include-weights", "ffn"], "--include-weights"),
        (["--exclude-weights", "ffn"], "--exclude-weights"),
        (["--chunks", 2], "64 tokens in chunks of 32 are too little for error feedback"),
        (["--chunks", 1], "32 tokens in chunks of 32 are too little for error feedback"),
    ],
)
def test_what_means_nothing_is_refused(folder: Path, tmp_path: Path, more: list[Any], named: str) -> None:
    check_one_line(invoke(*words(folder, tmp_path / "out", *more, "-q")), named)
    assert not list(tmp_path.iterdir())


def test_words_that_do_not_go_together(folder: Path, tmp_path: Path) -> None:
    model = folder / "Pico-4x1M-bf16"
    result = invoke("export", model, "-t", "Q4_K_M", "--feedback", "-o", tmp_path)
    assert result.exit_code == 2 and "--feedback means nothing without" in result.stderr
    for more in ([], ["--like", "Q4_K_M"]):
        result = invoke(*words(folder, tmp_path, "--imatrix", folder / "text.txt", *more))
        assert result.exit_code == 2 and "give --imatrix or text" in result.stderr


def test_an_expert_that_no_token_reaches_is_looked_at(folder: Path, tmp_path: Path) -> None:
    """A NaN in weights that nothing is multiplied with would otherwise become blocks."""
    model = pico_mixtral(
        tmp_path / "m", n_embd=256, n_ff=256, n_expert=3, n_expert_used=1, n_layer=1, n_shards=1
    )
    tensors = read_checkpoint(model)
    router = "model.layers.0.block_sparse_moe.gate.weight"
    shape = tensors[router].shape
    tensors[router] = np.zeros(shape, np.uint16)  # the first expert of equals is taken
    damaged = tensors["model.layers.0.block_sparse_moe.experts.2.w3.weight"]
    damaged[5, 7] = 0x7FC0
    write_checkpoint(model, tensors, json.loads((model / "config.json").read_text(encoding="utf-8")))
    given = words(folder, tmp_path / "out", "-q")
    result = invoke(given[0], model, *given[2:])
    check_one_line(result, "row 5, column 7 is not a finite number")
    assert not list((tmp_path / "out").glob("*.gguf"))


# -- types that are chosen


@pytest.mark.parametrize("saved", [False, True])
def test_chosen_types_and_feedback_stay_within_the_budget(
    folder: Path, usual: Path, tmp_path: Path, saved: bool
) -> None:
    """The keys of both are part of the file whose size was asked for."""
    more = ["--save-imatrix", tmp_path / "m.gguf"] if saved else []
    result = done(
        *words(folder, tmp_path / "out", "--like", "Q4_K_M", "--cost-tokens", 64, "--measure", 1, *more)
    )
    (made,) = (tmp_path / "out").iterdir()
    keys = GGUFFile(made).keys
    assert has_feedback(keys) and keys["moe_gguf.types.method"] == "fisher"
    label = keys["quantize.imatrix.file"]
    plain_bytes = usual.stat().st_size
    assert made.stat().st_size <= plain_bytes + 32 * (len(str(label)) > len("whole.imatrix.gguf"))
    assert "chosen" in result.stdout and "error feedback" in result.stdout
    if saved:
        assert label == "m.gguf"
        assert load_imatrix(tmp_path / "m.gguf").chunk_count == keys["quantize.imatrix.chunks_count"]
    assert "nothing is wrong" in done("verify", made, "--against", folder / "Pico-4x1M-bf16").stdout


def test_listed_types_and_feedback(folder: Path, tmp_path: Path) -> None:
    listed = tmp_path / "types.txt"
    listed.write_text(r"^blk\.0\.attn_v\.weight$=Q8_0" + "\n" + r"^blk\.1\.ffn_up_exps\.weight$=Q3_K" + "\n")
    done(*words(folder, tmp_path / "out", "--types", listed, "-t", "Q4_K_M"))
    made = GGUFFile(tmp_path / "out" / NAME)
    types = {spec.name: spec.qtype.name for spec in made.specs()}
    assert (types["blk.0.attn_v.weight"], types["blk.1.ffn_up_exps.weight"]) == ("Q8_0", "Q3_K")
    assert made.keys["moe_gguf.types.method"] == "listed" and has_feedback(made.keys)
    found = done("verify", tmp_path / "out" / NAME, "--against", folder / "Pico-4x1M-bf16")
    assert "nothing is wrong" in found.stdout
