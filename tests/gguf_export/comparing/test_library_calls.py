"""`export`, `compare` and `errors` as calls of a library: strings and objects in, frozen results out; no prints."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pico import pico_mixtral

from calibration.forward.settings import ForwardSettings
from calibration.importance.imatrix import Imatrix
from calibration.judging.encoding_errors import ErrorSettings
from calibration.text.chunks import make_chunks, read_prompts, read_text
from calibration.text.text_settings import TextSettings, cut_text
from calibration.text.tokenizer import open_tokenizer
from gguf_export.comparing.errors import cut_fit_and_held_out, errors
from gguf_export.comparing.models import ModelChoice
from gguf_export.comparing.run import (
    CompareResult,
    PassSettings,
    StateSettings,
    compare,
    fingerprint_of,
    prepare,
)
from gguf_export.comparing.texts import NamedText, TextChoice
from gguf_export.writing import state_file
from gguf_export.writing.export import export
from quantize.engine import Threads
from quantize.exceptions import MoeGgufError, RecipeError, TextError
from quantize.recipes.ftypes import ftype
from quantize.recipes.recipe import Recipe
from quantize.sources.checkpoint import open_checkpoint
from quantize.sources.model_source import open_source
from quantize.tensors import QType

TEXT = "a river runs through the small town and the small town knows the river well. "
PROMPTS = 'experts:\n  - positive_prompts: ["quick foxes jump over lazy dogs", "everybody knows numbers"]\n'

Q4_0 = Recipe(ftype("Q4_0"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("calls")
    pico_mixtral(made / "pico", n_embd=64, n_ff=64, n_layer=2)
    (made / "text.txt").write_text(TEXT * 12, encoding="utf-8")
    (made / "other.txt").write_text("everybody knows numbers. " * 30, encoding="utf-8")
    (made / "prompts.yml").write_text(PROMPTS, encoding="utf-8")
    return made


# -- texts


def test_a_text_has_a_name_or_goes_by_its_stem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert NamedText.parse("prose=some/where.txt") == NamedText("prose", Path("some/where.txt"))
    assert NamedText.parse("some/where.txt") == NamedText("where", Path("some/where.txt"))
    assert NamedText.parse("=x.txt") == NamedText("=x", Path("=x.txt"))
    monkeypatch.chdir(tmp_path)
    Path("a=b.txt").touch()
    assert NamedText.parse("a=b.txt") == NamedText("a=b", Path("a=b.txt"))


def test_the_name_of_a_text_may_hold_an_equals_sign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file that is there tells where it begins; where several are there, ./ before it does."""
    monkeypatch.chdir(tmp_path)
    Path("text.txt").touch()
    assert NamedText.parse("a=b=text.txt") == NamedText("a=b", Path("text.txt"))
    assert NamedText.parse("=a=text.txt") == NamedText("=a", Path("text.txt"))
    assert NamedText.parse("a/b=text.txt") == NamedText("a/b", Path("text.txt"))
    with pytest.raises(TextError, match=r"a=b=none\.txt: NAME=FILE names no file, wherever it is cut"):
        NamedText.parse("a=b=none.txt")
    Path("b=text.txt").touch()
    with pytest.raises(TextError, match=r"'b=text.txt' and 'text.txt' are files; write \./ before FILE"):
        NamedText.parse("a=b=text.txt")
    assert NamedText.parse("a=./b=text.txt") == NamedText("a", Path("b=text.txt"))
    assert NamedText.parse("a=b=./text.txt") == NamedText("a=b", Path("text.txt"))
    assert NamedText.parse("b=text.txt") == NamedText("b=text", Path("b=text.txt"))
    for name in ("x" * 5000, f"a={'x' * 5000}", f"a=b={'x' * 5000}", "a=\0=b"):
        with contextlib.suppress(TextError):
            NamedText.parse(name)


def test_the_name_of_a_text_is_valid_text() -> None:
    assert NamedText.parse("w\udcff.txt") == NamedText(r"w\xff", Path("w\udcff.txt"))
    assert NamedText.parse("n\udcff=w.txt") == NamedText(r"n\xff", Path("w.txt"))


def test_a_text_of_files_and_prompts_is_one_stream(folder: Path) -> None:
    model = open_source(folder / "pico")
    settings = TextSettings((folder / "text.txt",), (folder / "prompts.yml",), n_ctx=16, n_chunk=3)
    texts = [read_text(folder / "text.txt"), read_prompts(folder / "prompts.yml")]
    wanted = make_chunks(texts, open_tokenizer(folder / "pico"), n_ctx=16, n_chunk=3)
    cut = cut_text(model, settings)
    assert np.array_equal(cut.tokens, wanted.tokens) and cut.names == wanted.names
    assert settings.is_given and not TextSettings(n_ctx=16).is_given
    with pytest.raises(TextError, match="no text"):
        cut_text(model, TextSettings())


def test_other_text_is_spread_and_the_own_is_parted(folder: Path) -> None:
    model = open_source(folder / "pico")
    text = TextSettings((folder / "text.txt",), (folder / "prompts.yml",), n_ctx=16, n_chunk=2)
    whole = cut_text(model, TextSettings((folder / "other.txt",), n_ctx=16))
    fit, judged = cut_fit_and_held_out(model, text, [folder / "other.txt"])
    assert (fit.n_chunk, judged.n_chunk) == (2, 2)
    assert np.array_equal(judged.tokens, whole.tokens[[0, whole.n_chunk // 2]])  # and none of the prompts
    fit, judged = cut_fit_and_held_out(model, text, [])
    assert np.array_equal(np.concatenate([fit.tokens, judged.tokens]), cut_text(model, text).tokens)
    with pytest.raises(TextError, match="no calibration text; give one"):
        cut_fit_and_held_out(model, TextSettings(), [folder / "other.txt"])


# -- errors


def test_errors_is_one_call(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    text = TextSettings((folder / "text.txt",), n_ctx=16, n_chunk=2)
    report = errors(
        str(folder / "pico"),
        text,
        ErrorSettings.of(["q8_0", "Q4_0", "Q8_0"], baseline=False),
        held_out=[folder / "other.txt"],
        forward=ForwardSettings(),
    )
    assert report.model == "pico" and report.qtypes == ("Q8_0", "Q4_0")
    assert (report.n_fit, report.n_held_out) == (32, 32)
    assert {row.plain for row in report.rows} == {None}
    assert dict(report.facts)["output errors judged on"] == "other.txt: 32 tokens in 2 chunks of 16"
    assert capfd.readouterr() == ("", "")


def test_types_are_given_by_name_and_count_once() -> None:
    assert ErrorSettings.of(["q4_k", "Q4_K"], prior=8) == ErrorSettings((QType.Q4_K,), prior=8)
    with pytest.raises(RecipeError, match="Q4_K_X"):
        ErrorSettings.of(["Q4_K_X"])


# -- compare


def test_models_and_texts_are_given_by_name() -> None:
    models = ModelChoice.of("pico", "a.gguf", base="b.gguf", types=["q4_0"])
    assert models == ModelChoice((Path("pico"), Path("a.gguf")), Path("b.gguf"), (Q4_0,))
    texts = TextChoice.of("prose=a.txt", "b.txt", n_ctx=16)
    assert texts == TextChoice((NamedText("prose", Path("a.txt")), NamedText("b", Path("b.txt"))), 16)
    with pytest.raises(RecipeError, match="Q9"):
        ModelChoice.of("pico", types=["Q9"])


def choice(folder: Path, **more: Any) -> tuple[ModelChoice, TextChoice]:
    texts = TextChoice.of(f"prose={folder / 'text.txt'}", n_ctx=16, n_chunk=2)
    return ModelChoice.of(folder / "pico", types=["q4_0"], **more), texts


def test_compare_is_one_call(folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    seen: list[CompareResult] = []
    remarks: list[str] = []
    state = StateSettings.beside(tmp_path / "figures.json")
    result = compare(
        *choice(folder), state=state, on_result=seen.append, note=lambda remark: remarks.append(str(remark))
    )
    assert seen == [result] and result.n_in_pass == 2
    assert result.bytes_read == open_checkpoint(folder / "pico").n_bytes
    assert [model.name for model in result.comparison.models] == ["Q4_0 (round trip)"]
    assert result.comparison.results[0][0].statistics.kld.value > 0
    assert not list(tmp_path.iterdir()) and capfd.readouterr() == ("", "")
    with pytest.raises(AttributeError):
        result.bytes_read = 0  # type: ignore[misc]


def test_a_result_that_cannot_be_written_costs_no_second_pass(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state_file, "KEEP_SECONDS", 0.0)
    monkeypatch.setattr(state_file, "KEEP_SHARE", float("inf"))
    state = StateSettings(tmp_path / "x.state", "the figures")
    remarks: list[str] = []
    results: list[CompareResult] = []

    def full(result: CompareResult) -> None:
        results.append(result)
        raise OSError("no space")

    def run_again(restart: bool, on_result: Callable[[CompareResult], None]) -> CompareResult:
        return compare(
            *choice(folder),
            state=replace(state, restart=restart),
            on_result=on_result,
            note=lambda remark: remarks.append(str(remark)),
        )

    with pytest.raises(OSError, match="no space"):
        run_again(False, full)
    assert remarks[-1].startswith("the figures: 2 of 2 layers are done and kept in x.state")
    again = run_again(False, lambda _: None)
    assert "the figures: continued, 2 of 2 layers are done" in remarks
    assert again.comparison.results[0][0].statistics == results[0].comparison.results[0][0].statistics
    with pytest.raises(OSError, match="no space"):
        run_again(False, full)
    remarks.clear()
    run_again(True, lambda _: None)
    assert not any("continued" in remark for remark in remarks)


def test_the_state_of_an_earlier_version_goes_on(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is written to a state must not change: runs that were stopped would begin afresh."""
    monkeypatch.chdir(folder)
    job = prepare(*choice(Path()))
    prints = fingerprint_of(job, PassSettings("int8"))
    assert set(prints) == {
        *("version of moe-gguf", "text", "length of the chunks", "arithmetic", "activations"),
        *("importance matrix", "choice of models", "checkpoint"),
    }
    assert prints["choice of models"] == "4cce8d56c593eb07d0b741a04aee6a73"
    assert prints["importance matrix"] == "none"
    assert fingerprint_of(job, PassSettings())["activations"] == "exact"
    assert prints["activations"] == "int8, cache of f16"  # with "int8" alone keys and values were not rounded
    assert prints["length of the chunks"] == "16"
    assert prints["arithmetic"].startswith(
        "Arithmetic(device='cpu', dtype=torch.float32) torch.float32 torch "
    )


def test_what_is_missing_is_said_without_the_words_of_the_command_line(folder: Path) -> None:
    """A caller of the library has parameters, not switches."""
    models, texts = choice(folder)
    for wrong, texts_given, message in (
        (replace(models, recipes=()), texts, "nothing to compare; give GGUF files"),
        (
            replace(models, paths=()),
            texts,
            "a type without a file is judged from its checkpoint; give the folder",
        ),
        (replace(models, recipes=(Q4_0, Q4_0)), texts, "Q4_0: is given twice"),
        (models, TextChoice(), "no text to judge by"),
        (models, replace(texts, texts=texts.texts * 2), "two texts are called 'prose'; name them apart"),
    ):
        with pytest.raises(MoeGgufError, match=message) as caught:
            prepare(wrong, texts_given)
        assert "--" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"publisher": "me"}, "publisher: means nothing without lmstudio"),
        ({"prior": 8.0}, "prior: means nothing without a text or a file of importances"),
        (
            {"prior": 8.0, "imatrix": Imatrix({})},
            "prior: means nothing without a text or a file of importances",
        ),
        ({"save_imatrix": Path("m.gguf")}, "save_imatrix: means nothing without a text"),
        ({"engine": Threads(1), "text": "text.txt"}, "engine: means nothing with a text"),
    ],
)
def test_settings_that_mean_nothing_are_refused(
    folder: Path, tmp_path: Path, settings: dict[str, Any], said: str
) -> None:
    if settings.get("text"):
        settings = settings | {"text": folder / settings["text"]}
    with pytest.raises(RecipeError, match=said):
        export(folder / "pico", "Q8_0", tmp_path / "out", **settings)
    assert not (tmp_path / "out").exists()
