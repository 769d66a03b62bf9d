"""What fits a graphics card: needs, choices, and where the models come from."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from command_line import check_one_line, invoke

import gguf_export
from gguf_export.checking.fit import GIB, LEVELS, RESERVE, ModelNeeds, Need, fit, which_file
from quantize.exceptions import ChoiceError, RecipeError
from quantize.sources.checkpoint import open_checkpoint

CONTEXT = 4096


def model(name: str, gpu: float, dense: float | None = None) -> ModelNeeds:
    """A model of so many GiB on the GPU, or `dense` GiB with its experts in RAM."""

    def need(on_gpu: float, ram: float, experts_in_ram: bool) -> Need:
        return Need(CONTEXT, experts_in_ram, int(on_gpu * GIB), int(ram * GIB), 0, 0)

    apart = [] if dense is None else [need(dense, gpu - dense, True)]
    return ModelNeeds(name, name, int(gpu * GIB), (need(gpu, 0, False), *apart))


BEST_FIRST = (model("best", 40, 4), model("good", 20, 3), model("fair", 10, 2))


@pytest.mark.parametrize(
    ("vram", "ram", "expected", "experts_in_ram"),
    [
        (48.0, 0.0, "best", False),
        (40.0, 0.0, "best", False),
        (24.0, 64.0, "good", False),
        (12.0, 64.0, "fair", False),
        (8.0, 64.0, "best", True),
        (8.0, 32.0, "good", True),
        (3.0, 64.0, "good", True),
        (8.0, 4.0, None, False),
    ],
)
def test_the_first_that_fits_is_chosen(
    vram: float, ram: float, expected: str | None, experts_in_ram: bool
) -> None:
    (choice,) = which_file(BEST_FIRST, [vram], [CONTEXT], ram=ram)
    assert choice.name == expected
    assert choice.need is None or choice.need.experts_in_ram == experts_in_ram
    assert (choice.need is None) == (expected is None)


def test_the_order_of_the_models_is_the_callers() -> None:
    (choice,) = which_file(BEST_FIRST[::-1], [48.0], [CONTEXT])
    assert choice.name == "fair"


def test_a_checkpoint_is_planned(demo_model: Path, tmp_path: Path) -> None:
    """Its levels take what the files take that are made of it."""
    planned = fit(demo_model, [1.0], [CONTEXT])
    assert sorted(one.name for one in planned.models) == sorted(LEVELS)
    assert [one.n_bytes for one in planned.models] == sorted(
        (one.n_bytes for one in planned.models), reverse=True
    )
    gguf_export.export(demo_model, ["Q8_0", "Q6_K"], tmp_path)
    made = fit(tmp_path, [1.0], [CONTEXT])
    of_type = {one.ftype: one for one in planned.models}
    assert [one.ftype for one in made.models] == ["Q8_0", "Q6_K"]
    for one in made.models:
        assert one.needs == of_type[one.ftype].needs
        assert one.n_bytes == of_type[one.ftype].n_bytes
    assert made.models[0].name == "Demo-4x2.0M-Q8_0" and made.choices[0].name == made.models[0].name
    alone = fit(tmp_path / "Demo-4x2.0M-Q6_K.gguf", [1.0], [CONTEXT])
    assert alone.models == made.models[1:]


def test_the_sums_are_those_of_the_formula(demo_model: Path) -> None:
    hp = open_checkpoint(demo_model).hparams
    need = fit(demo_model, [1.0], [CONTEXT], types=["Q8_0"]).models[0].need(CONTEXT)
    assert need is not None
    assert need.cache == 2 * hp.n_layer * hp.n_head_kv * hp.head_dim * 2 * CONTEXT
    assert need.reserve == RESERVE + 512 * hp.n_vocab * 4
    assert need.gpu == need.on_gpu + need.cache + need.reserve
    apart = fit(demo_model, [1.0], [CONTEXT], types=["Q8_0"]).models[0].need(CONTEXT, experts_in_ram=True)
    assert apart is not None
    assert apart.on_gpu + apart.ram == need.on_gpu + need.ram
    assert apart.reserve > need.reserve


def test_what_is_no_model_is_passed_over(demo_model: Path, tmp_path: Path) -> None:
    gguf_export.export(demo_model, "Q8_0", tmp_path, split_max_tensors=10)
    parts = sorted(tmp_path.glob("*.gguf"))
    assert len(parts) > 2
    (tmp_path / "Q8_0").mkdir()
    for part in parts:
        shutil.move(part, tmp_path / "Q8_0" / part.name)
    found = fit(tmp_path, [1.0], [CONTEXT])
    assert [one.name for one in found.models] == ["Demo-4x2.0M-Q8_0"]
    assert found.models[0].n_bytes == fit(demo_model, types=["Q8_0"]).models[0].n_bytes


def test_what_cannot_be_asked_is_refused(demo_model: Path, tmp_path: Path) -> None:
    with pytest.raises(ChoiceError, match="neither a checkpoint"):
        fit(tmp_path)
    with pytest.raises(ChoiceError, match="does not exist"):
        fit(tmp_path / "nothing.gguf")
    with pytest.raises(RecipeError, match="unknown"):
        fit(demo_model, types=["Q9"])
    gguf_export.export(demo_model, "Q8_0", tmp_path)
    with pytest.raises(RecipeError, match="finished files have theirs"):
        fit(tmp_path, types=["Q8_0"])


def test_the_command_prints_tables_and_assumptions(demo_model: Path) -> None:
    done = invoke(
        "inspect", demo_model, "--fit", "--vram", "8,12", "--vram", 24, "--ctx", "4k,8192", "-t", "Q8_0"
    )
    assert done.exit_code == 0, done.output
    for word in ("GPU 4k", "GPU 8k", "8 GiB", "12 GiB", "24 GiB", "in RAM", "768.00 MiB", "was trained for"):
        assert word in done.output, word
    assert "GPU 32k" not in done.output


def test_the_command_gives_json(demo_model: Path) -> None:
    done = invoke("inspect", demo_model, "--fit", "--json", "-t", "Q8_0", "--cache-type", "q8_0")
    facts = json.loads(done.stdout)
    assert {choice["vram"] for choice in facts["choices"]} == {8, 12, 16, 24}
    need = facts["models"][0]["needs"][0]
    assert need["gpu"] == need["on_gpu"] + need["cache"] + need["reserve"]
    assert facts["choices"][0]["need"]["gpu"] == need["gpu"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--fit", "--vram", "8GB"], "number of GiB"),
        (["--fit", "--vram", "0"], "number of GiB"),
        (["--fit", "--ctx", "4k,many"], "number of tokens"),
        (["--vram", "8"], "--vram means nothing without --fit"),
        (["--fit", "--tensors"], "--tensors means nothing beside --fit"),
    ],
)
def test_what_makes_no_sense_is_said(demo_model: Path, words: list[str], message: str) -> None:
    done = invoke("inspect", demo_model, *words)
    assert done.exit_code == 2 and message in done.stderr


@pytest.mark.parametrize(
    "words",
    [
        ["inspect", "MODEL"],
        ["inspect", "MODEL", "--fit"],
        ["export", "MODEL", "-t", "Q8_0"],
        ["export", "MODEL", "-t", "Q8_0", "--dry-run"],
        ["quantize", "MODEL", "out.gguf", "Q8_0"],
        ["verify", "FILE", "--against", "MODEL"],
        ["plan", "MODEL", "--like", "Q4_K_M", "--text", "TEXT"],
        ["imatrix", "MODEL", "--text", "TEXT", "-o", "m.gguf"],
        ["errors", "MODEL", "-t", "Q8_0", "--text", "TEXT", "-o", "errors.json"],
        ["compare", "MODEL", "FILE", "--text", "TEXT"],
        ["compare", "FILE", "MODEL", "--text", "TEXT"],
    ],
)
def test_a_name_of_the_hub_gets_the_command_that_downloads_it_where_the_hub_is_not_asked(
    words: list[str], demo_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    gguf_export.export(demo_model, "Q8_0", tmp_path)
    (tmp_path / "TEXT").write_text("a river runs through the town. " * 100, encoding="utf-8")
    (file,) = tmp_path.glob("*.gguf")
    spelled = {"MODEL": "somebody/Harmony-4x7B", "FILE": file.name}
    done = invoke(*(spelled.get(word, word) for word in words))
    check_one_line(done, "hf download somebody/Harmony-4x7B --local-dir Harmony-4x7B")


def test_doctor_says_how_to_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    done = invoke("doctor", "https://huggingface.co/somebody/Harmony-4x7B")
    assert done.exit_code and "hf download somebody/Harmony-4x7B --local-dir Harmony-4x7B" in done.output


@pytest.mark.parametrize("path", ["nothing", "a/b/c", "out/Model-Q8_0.gguf", "/somebody/Harmony"])
def test_other_paths_are_no_names_of_the_hub(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = invoke("export", path, "-t", "Q8_0")
    assert done.exit_code and "hf download" not in done.output
