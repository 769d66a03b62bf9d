"""The command line as a user meets it: verbs, tables, and one clear line for everything that is wrong."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import check_one_line, forward_words, invoke
from pico import pico_mixtral, read_checkpoint, write_checkpoint
from places import ROOT

from calibration.importance.imatrix import Entry, Imatrix
from calibration.importance.imatrix_files import load_imatrix, save_imatrix
from calibration.judging.held_out import N_JUDGED
from calibration.text.chunks import N_CTX
from gguf_export.cli import main
from gguf_export.commands.messages import switch
from quantize.sources.gguf_file import GGUFFile


@pytest.fixture(scope="module")
def pico(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pico_mixtral(tmp_path_factory.mktemp("models") / "Pico-4x1M-bf16", n_shards=3)


@pytest.fixture
def model(pico: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pico, tmp_path / pico.name))


def test_help_answers_without_heavy_imports() -> None:
    script = (
        "import sys; from gguf_export.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = 'numba', 'torch', 'numpy', 'rich', 'gguf', 'jinja2', 'matplotlib'\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "export" in done.stdout
    assert done.stdout.strip().endswith("[]")


def test_every_command_and_option_has_help() -> None:
    for name, command in main.commands.items():
        assert command.help, name
        for option in command.params:
            if option.param_type_name == "option":
                assert option.help, f"{name} {option.name}"


def test_export_writes_files_and_a_table(model: Path, tmp_path: Path) -> None:
    done = invoke("export", model, "-t", "Q8_0", "-t", "f16", "-o", tmp_path / "out", "--jobs", 1)
    assert done.exit_code == 0, done.output
    names = sorted(path.name for path in (tmp_path / "out").glob("*.gguf"))
    assert names == ["Pico-4x1M-F16.gguf", "Pico-4x1M-Q8_0.gguf"]
    assert all(name in done.stdout for name in names)
    assert "read once" in done.stdout


def test_experts_with_few_tokens_are_told_with_their_remedy(model: Path, tmp_path: Path) -> None:
    counts = np.array([500, 0, 99, 100])
    entry = Entry(np.ones((4, 64), np.float32), counts)
    save_imatrix(tmp_path / "m.gguf", Imatrix({"blk.0.ffn_up_exps.weight": entry}, chunk_count=1))
    words = ["export", model, "-t", "Q8_0", "--imatrix", tmp_path / "m.gguf", "--dry-run", "-o", tmp_path]
    told = invoke(*words).stderr
    assert "fewer than 100 tokens for 2 experts, and none for 1 of them, which are weighted evenly" in told
    assert "blk.0.ffn_up_exps.weight expert 1 (0), blk.0.ffn_up_exps.weight expert 2 (99); --prior 8" in told
    assert "fewer than" not in invoke(*words, "--prior", 8).stderr


@pytest.mark.parametrize("dataset", ["/home/me/wiki.txt", r"C:\Users\me\wiki.txt", "wiki.txt"])
def test_files_name_an_imatrix_and_its_text_and_no_folder(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dataset: str
) -> None:
    """Whoever publishes a file does not mean to say where it lay; llama-quantize writes the path as it is given."""
    monkeypatch.chdir(tmp_path)
    entry = Entry(np.ones((4, 64), np.float32), np.full(4, 500))
    matrix = Imatrix({"blk.0.ffn_up_exps.weight": entry}, [dataset], chunk_count=1)
    for name, legacy in (("m.gguf", False), ("m.dat", True)):
        save_imatrix(tmp_path / name, matrix, legacy=legacy)
        assert load_imatrix(tmp_path / name).datasets == ["wiki.txt"]
        out = tmp_path / f"out-{name}"
        done = invoke("export", model, "-t", "Q8_0", "--imatrix", f"{tmp_path}//{name}", "-o", out, "-q")
        assert done.exit_code == 0, done.output
        (made,) = out.iterdir()
        keys = GGUFFile(made).keys
        assert (keys["quantize.imatrix.file"], keys["quantize.imatrix.dataset"]) == (name, "wiki.txt")


def test_nothing_that_is_published_names_a_folder(model: Path, tmp_path: Path) -> None:
    """Neither the files and their importances, nor the reports on them."""
    (model / "README.md").write_text(
        "---\nbase_model:\n- /home/me/models/Mistral-7B\n---\n", encoding="utf-8"
    )
    done = invoke(*forward_words("export", model, tmp_path), "--save-imatrix", tmp_path / "m.gguf")
    assert done.exit_code == 0, done.output
    (made,) = tmp_path.glob("Pico*.gguf")
    assert GGUFFile(made).keys["general.base_model.0.name"] == "Mistral 7B"
    compared = invoke(
        *forward_words("compare", model, tmp_path), made, "--imatrix", tmp_path / "m.gguf",
        *(word for form in ("csv", "markdown", "html") for word in (f"--{form}", tmp_path / f"c.{form}")),
    )  # fmt: skip
    assert compared.exit_code == 0, compared.output
    judged = invoke(
        *forward_words("errors", model, tmp_path), "-o", tmp_path / "e.html", "-o", tmp_path / "e.csv"
    )
    assert judged.exit_code == 0, judged.output
    written = [path for path in tmp_path.iterdir() if path.is_file() and path.name != "text.txt"]
    assert len(written) == 9
    for path in written:
        content = path.read_bytes()
        assert str(tmp_path).encode() not in content and b"/home/" not in content, path.name


def test_importances_of_a_finished_file_are_those_of_its_checkpoint(model: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("the quick brown fox and the lazy dog\n" * 40, encoding="utf-8")
    assert invoke("export", model, "-t", "BF16", "-o", tmp_path, "-q").exit_code == 0
    words = ["--text", tmp_path / "text.txt", "--ctx", 64, "--chunks", 4, "-q"]
    for source, output in ((model, "a.gguf"), (next(tmp_path.glob("*BF16.gguf")), "b.gguf")):
        done = invoke("imatrix", source, *words, "-o", tmp_path / output)
        assert done.exit_code == 0, done.output
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()
    done = invoke(
        "errors", next(tmp_path.glob("*BF16.gguf")), *words, "-t", "Q8_0", "-o", tmp_path / "e.json"
    )
    assert done.exit_code == 0, done.output


def test_a_damaged_checkpoint_leaves_nothing_to_go_on_from(model: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("the quick brown fox and the lazy dog\n" * 40, encoding="utf-8")
    tensors = read_checkpoint(model)
    tensors["model.layers.1.post_attention_layernorm.weight"][:] = 0x7F7F  # 3e38, finite and absurd
    write_checkpoint(model, tensors, json.loads((model / "config.json").read_text()), n_shards=3)
    words = ["export", model, "-t", "Q8_0", "-o", tmp_path / "out", "--text", tmp_path / "text.txt"]
    done = invoke(*words, "--ctx", 64, "--chunks", 4)
    assert done.exit_code == 3 and "layer 1" in done.stderr and "goes on" not in done.stderr, done.output
    assert not list((tmp_path / "out").iterdir())


def test_quiet_prints_nothing(model: Path, tmp_path: Path) -> None:
    done = invoke("export", model, "-t", "Q8_0", "-o", tmp_path / "out", "--quiet")
    assert (done.exit_code, done.output) == (0, "")


def test_dry_run_prints_the_plan_and_writes_nothing(model: Path, tmp_path: Path) -> None:
    done = invoke("export", model, "-t", "Q8_0", "-o", tmp_path / "out", "--dry-run")
    assert done.exit_code == 0
    assert "blk.1.ffn_down_exps.weight" in done.stdout
    assert re.search(
        r"1 file: [\d.]+ \w+ in all, [\d.]+ \w+ free in .*; about \d+ s of encoding", done.stdout
    )
    assert not (tmp_path / "out").exists()


def test_overrides_and_types_reach_the_file(model: Path, tmp_path: Path) -> None:
    done = invoke(
        "export", model, "-t", "Q8_0", "-o", tmp_path, "--name", "Other Name",
        "--override-kv", "general.author=str:me", "--override-kv", "llama.expert_used_count=int:1",
        "--tensor-type", "attn_v=f16", "--output-tensor-type", "bf16",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    file = GGUFFile(next(tmp_path.glob("*.gguf")))
    assert file.keys["general.name"] == "Other Name"
    assert file.keys["general.author"] == "me"
    assert file.keys["llama.expert_used_count"] == 1
    assert file.tensors["blk.0.attn_v.weight"].spec.qtype.name == "F16"
    assert file.tensors["output.weight"].spec.qtype.name == "BF16"


def test_width_fallback_is_said(model: Path, tmp_path: Path) -> None:
    done = invoke("export", model, "-t", "Q4_K_M", "-o", tmp_path, "--dry-run")
    assert "fall back" in done.stderr


def test_lmstudio_layout(model: Path, tmp_path: Path) -> None:
    done = invoke(
        "export", model, "-t", "Q8_0", "-o", tmp_path / "models", "--lmstudio", "--publisher", "someone"
    )
    assert done.exit_code == 0, done.output
    assert [path.relative_to(tmp_path / "models") for path in (tmp_path / "models").rglob("*.gguf")] == [
        Path("someone", "Pico-4x1M-GGUF", "Pico-4x1M-Q8_0.gguf")
    ]


def test_inspect(model: Path, tmp_path: Path) -> None:
    assert "4, 2 used" in invoke("inspect", model).stdout
    assert invoke("export", model, "-t", "Q8_0", "-o", tmp_path).exit_code == 0
    path = next(tmp_path.glob("*.gguf"))
    assert "blk.0.attn_q.weight" in invoke("inspect", path, "--tensors").stdout
    told = json.loads(invoke("inspect", path, "--json").stdout)
    assert told["kind"] == "gguf"
    assert told["hparams"]["n_expert"] == 4
    assert told["keys"]["general.architecture"] == "llama"
    assert sum(tensor["n_bytes"] for tensor in told["tensors"]) == told["n_bytes"]


def config(model: Path, **changes: Any) -> None:
    path = model / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def weights(model: Path, change: Callable[[dict[str, Any]], object]) -> None:
    found = read_checkpoint(model)
    change(found)
    for old in model.glob("model*"):
        old.unlink()
    write_checkpoint(model, found, json.loads((model / "config.json").read_text()), n_shards=2)


def index(model: Path, change: Callable[[dict[str, str]], object]) -> None:
    path = model / "model.safetensors.index.json"
    told = json.loads(path.read_text())
    change(told["weight_map"])
    path.write_text(json.dumps(told))


def shard(model: Path, number: int = 0) -> Path:
    return sorted(model.glob("*.safetensors"))[number]


def truncate(model: Path) -> None:
    path = shard(model, 1)
    path.write_bytes(path.read_bytes()[:-100])


def lie_about_length(model: Path) -> None:
    path = shard(model, 1)
    path.write_bytes((2**40).to_bytes(8, "little") + path.read_bytes()[8:])


def only_pickle(model: Path) -> None:
    for path in model.glob("*.safetensors*"):
        path.unlink()
    (model / "pytorch_model.bin").write_bytes(b"anything")


W1 = "model.layers.1.block_sparse_moe.experts.2.w1.weight"
FAULTS: list[tuple[str, Callable[[Path], object], str]] = [
    ("no config", lambda m: (m / "config.json").unlink(), "config.json"),
    ("architecture", lambda m: config(m, architectures=["BertModel"]), "MixtralForCausalLM"),
    ("missing shard", lambda m: shard(m, 1).unlink(), "model-00002"),
    ("truncated shard", truncate, "model-00002"),
    ("lying header", lie_about_length, "model-00002"),
    ("index leaves the folder", lambda m: index(m, lambda w: w.update({W1: "../x.safetensors"})), "index"),
    ("missing expert", lambda m: weights(m, lambda w: w.pop(W1)), "expert"),
    ("wrong shape", lambda m: weights(m, lambda w: w.update({W1: w[W1][:5]})), "shape"),
    ("unread tensor", lambda m: weights(m, lambda w: w.update(more=w[W1].copy())), "more"),
    ("pickle", only_pickle, "safetensors"),
    ("infinity", lambda m: weights(m, lambda w: w[W1].__setitem__((0, 0), 0x7F80)), "expert 2"),
    ("vocabulary", lambda m: weights(m, lambda w: shorten(w, 300)), "tokens"),
    ("no tokenizer", lambda m: (m / "tokenizer.model").unlink(), "tokenizer"),
]


def shorten(found: dict[str, Any], rows: int) -> None:
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        found[name] = found[name][:rows]


@pytest.mark.parametrize(
    ("fault", "named"), [fault[1:] for fault in FAULTS], ids=[fault[0] for fault in FAULTS]
)
def test_bad_checkpoint_is_one_line(
    model: Path, tmp_path: Path, fault: Callable[[Path], object], named: str
) -> None:
    fault(model)
    done = invoke("export", model, "-t", "Q8_0", "-o", tmp_path / "out", "--quiet")
    check_one_line(done, named)
    assert not list((tmp_path / "out").glob("*.gguf"))


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["-t", "Q4_X"], "Q4_K_M"),
        (["-t", "Q8_0", "--imatrix", "absent.gguf"], "absent.gguf"),
        (["-t", "Q8_0", "--tensor-type", "attn_v"], "attn_v"),
        (["-t", "Q8_0", "--tensor-type", "(=q8_0"], "("),
        (["-t", "Q8_0", "--override-kv", "a=b"], "a=b"),
        (["-t", "Q8_0", "--output-tensor-type", "q9"], "q9"),
        (["-t", "Q8_0", "--prune-layers", "1-2"], "1-2"),
    ],
)
def test_bad_setting_is_one_line(pico: Path, tmp_path: Path, words: list[str], named: str) -> None:
    check_one_line(invoke("export", pico, *words, "-o", tmp_path), named)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("verb", ["imatrix", "errors", "compare", "export"])
def test_a_device_that_is_not_there_is_one_line(pico: Path, tmp_path: Path, verb: str) -> None:
    words = forward_words(verb, pico, tmp_path)
    absent = [] if torch.cuda.is_available() else ["cuda"]
    for device in ("warp", "meta", *absent):
        done = invoke(*words, "--device", device)
        check_one_line(done, f"device {device}: torch cannot compute there (")
        assert "it can on: cpu" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["text.txt"]


@pytest.mark.parametrize("verb", ["imatrix", "errors", "compare"])
def test_hidden_states_in_bf16_change_the_figures_a_little(pico: Path, tmp_path: Path, verb: str) -> None:
    for hidden in ("f32", "bf16"):
        (tmp_path / hidden).mkdir()
        done = invoke(*forward_words(verb, pico, tmp_path / hidden), "--hidden", hidden)
        assert done.exit_code == 0, done.output
    (wide,) = (path for path in (tmp_path / "f32").iterdir() if path.name != "text.txt")
    narrow = tmp_path / "bf16" / wide.name
    assert narrow.read_bytes() != wide.read_bytes()
    if verb == "imatrix":
        one, other = (load_imatrix(path).entries["blk.1.attn_q.weight"].sums for path in (wide, narrow))
        np.testing.assert_allclose(one, other, rtol=0.1)
        assert (one != other).any()


def test_existing_file_needs_force(model: Path, tmp_path: Path) -> None:
    words: tuple[Any, ...] = ("export", model, "-t", "Q8_0", "-o", tmp_path / "out", "--quiet")
    assert invoke(*words).exit_code == 0
    words = (*words, "--override-kv", "general.author=str:x")
    check_one_line(invoke(*words), "--force")
    assert invoke(*words, "--force").exit_code == 0


@pytest.mark.parametrize("content", [None, b"", b"GGUF", b"nonsense"])
def test_inspect_refuses_what_it_cannot_read(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "some.gguf"
    if content is not None:
        path.write_bytes(content)
    check_one_line(invoke("inspect", path), "some.gguf")


@pytest.mark.parametrize(
    ("words", "needed"),
    [
        (
            ["export", "-t", "Q8_0", "--dry-run", "--device", "nonsense"],
            "--device means nothing without --text",
        ),
        (["export", "-t", "Q8_0", "--dry-run", "--hidden", "bf16"], "--hidden means nothing without --text"),
        (["export", "-t", "Q8_0", "--dry-run", "--chunks", 3], "--chunks means nothing without --text"),
        (["export", "-t", "Q8_0", "--dry-run", "--ctx", 77], "--ctx means nothing without --text"),
        (
            ["export", "-t", "Q8_0", "--dry-run", "--publisher", "me"],
            "--publisher means nothing without --lmstudio",
        ),
        (["export", "-t", "Q8_0", "--save-imatrix", "x"], "--save-imatrix means nothing without --text"),
        (
            ["export", "-t", "Q8_0", "--include-weights", "attn"],
            "--include-weights means nothing without --imatrix or --text",
        ),
        (
            ["export", "-t", "Q8_0", "--exclude-weights", "attn"],
            "--exclude-weights means nothing without --imatrix or --text",
        ),
        (["verify", "--quick"], "--quick means nothing without --against"),
        (["verify", "-j", 2], "--jobs means nothing without --against"),
        (["compare", "--pure"], "--pure means nothing without --type"),
        (["compare", "--imatrix", "x"], "--imatrix means nothing without --type"),
        (["compare", "--restart"], "--restart means nothing without --json"),
        (["errors", "-t", "Q4_K", "--force"], "--force means nothing without --output"),
    ],
)
def test_an_option_that_means_nothing_is_refused(model: Path, words: list[Any], needed: str) -> None:
    done = invoke(words[0], model, *words[1:])
    assert done.exit_code == 2 and needed in done.stderr


def test_settings_of_the_library_are_options_of_the_command_line() -> None:
    """Errors and remarks name settings; what the command line makes of them must be a switch that a verb has."""
    switches = {name for verb in main.commands.values() for param in verb.params for name in param.opts}
    for path in [
        path for floor in ("quantize", "calibration", "gguf_export") for path in (ROOT / floor).rglob("*.py")
    ]:
        for setting in re.findall(r'setting="(\w+)"', path.read_text(encoding="utf-8")):
            assert switch(setting) in switches, f"{path.relative_to(ROOT)}: {setting}"


def test_defaults_are_those_of_the_library() -> None:
    defaults = {
        (name, param.name): param.default for name, verb in main.commands.items() for param in verb.params
    }
    assert {defaults[name, "n_ctx"] for name in ("export", "imatrix", "errors", "compare")} == {N_CTX}
    assert defaults["errors", "n_judged"] == N_JUDGED


def test_a_plot_is_written_as_svg_and_png(model: Path, tmp_path: Path) -> None:
    words = [*forward_words("compare", model, tmp_path), "--force", "--plot"]
    for name, begins in (("a.svg", b"<?xml"), ("b.png", b"\x89PNG")):
        done = invoke(*words, tmp_path / name)
        assert done.exit_code == 0, done.output
        assert (tmp_path / name).read_bytes().startswith(begins)
    done = invoke(*words, tmp_path / "c.pdf")
    assert done.exit_code == 2 and ".svg and .png" in done.stderr


def test_the_importances_of_a_text_replace_nothing(model: Path, tmp_path: Path) -> None:
    """Said before the text passes, not after hours of it."""
    (tmp_path / "i.gguf").write_bytes(b"kept")
    words = [*forward_words("export", model, tmp_path), "--save-imatrix"]
    done = invoke(*words, tmp_path / "i.gguf")
    check_one_line(done, "exists already, and is neither a GGUF nor a legacy imatrix")
    assert (tmp_path / "i.gguf").read_bytes() == b"kept"
    check_one_line(invoke(*words, tmp_path / "no" / "i.gguf"), "no such folder")


def test_a_plan_and_a_result_for_programs(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ["export", model, "-t", "Q4_K_M", "-t", "Q8_0", "-o", out, "-j", 1]
    dry = invoke(*words, "--dry-run", "--json", "-")
    planned = json.loads(dry.stdout)
    assert not out.exists() and planned["dry_run"] and planned["free_bytes"] > planned["n_bytes"]
    assert planned["estimated_seconds"] > 0
    assert any("fall back" in remark["message"] for remark in planned["remarks"])
    done = invoke(*words, "--json", tmp_path / "made.json")
    assert done.exit_code == 0 and "read once" in done.stdout
    made = json.loads((tmp_path / "made.json").read_text(encoding="utf-8"))
    assert made["seconds"]["wall"] > 0 and made["bytes_read"] > 0
    for before, after in zip(planned["files"], made["files"], strict=True):
        assert (before["state"], after["state"]) == ("planned", "made")
        assert before | {"state": ""} == after | {"state": ""}
        assert Path(after["path"]).stat().st_size == after["n_bytes"]
        assert sum(one["n_tensors"] for one in after["types"].values()) == len(after["tensors"])
    fallen = [tensor for tensor in made["files"][0]["tensors"] if tensor["fallback_from"]]
    assert fallen and all(tensor["qtype"] != tensor["fallback_from"] for tensor in fallen)
    told = invoke(*words, "--dry-run").stdout.splitlines()[-1]
    assert told.startswith("2 files: ") and f" free in {out}; about " in told
    check_one_line(invoke(*words, "--json", model / "config.json"), "is read, too")
