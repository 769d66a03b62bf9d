"""Figures of comparisons read back, merged, and refused where they do not go together."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from measured import make_results

from gguf_export.comparing.merging import merged
from gguf_export.comparing.results import Results, Speed, SpeedTest
from gguf_export.reports.compare_data import compare_csv, compare_json
from gguf_export.reports.compare_page import compare_page
from gguf_export.reports.compare_plots import plot_svg, write_plot
from gguf_export.reports.compare_read import read_all, read_results
from gguf_export.reports.compare_tables import compare_markdown, files_table
from quantize.exceptions import ChoiceError, OutputError, OutputExistsError

TEXTS = ("prose", "code")


@pytest.fixture
def results() -> Results:
    made = make_results(5, TEXTS)
    speeds = (replace(made.models[0], speed=Speed(123.0, 4.5)), *made.models[1:])
    return replace(made, models=speeds, speed_test=SpeedTest("xllamacpp 1", 2, 512, 64))


def written(path: Path, results: Results) -> Path:
    path.write_text(compare_json(results), encoding="utf-8")
    return path


def test_what_was_written_is_read(tmp_path: Path, results: Results) -> None:
    found = read_results(written(tmp_path / "a.json", results))
    assert found == results
    for make in (compare_json, compare_csv, compare_markdown, compare_page, plot_svg):
        assert make(found) == make(results)


def part(results: Results, start: int, stop: int) -> Results:
    return replace(results, models=results.models[start:stop])


def test_parts_become_one(tmp_path: Path, results: Results) -> None:
    paths = [
        written(tmp_path / "b.json", part(results, 2, 5)),
        written(tmp_path / "a.json", part(results, 0, 3)),  # one model is in both
    ]
    found = read_all(paths)
    assert found.labels == results.labels and found.timings is None
    assert found.models[0].speed == Speed(123.0, 4.5) and found.speed_test == results.speed_test
    assert files_table(found) == files_table(results)
    assert merged([("a", results)]) == results


def test_files_of_one_name_are_told_apart(results: Results) -> None:
    worse = [replace(model, n_bytes=model.n_bytes + 1) for model in results.models[:2]]
    other = replace(results, models=(*worse, replace(worse[0], label="mine", is_named=True)))
    found = merged([("mradermacher.json", results), ("x/bartowski.json", other)])
    assert len(found.models) == 8
    assert {"Q8_0 (mradermacher)", "Q8_0 (bartowski)", "mine", "Q4_K_S"} <= set(found.labels)


def change_text(**changes: Any) -> Callable[[Results], Results]:
    return lambda results: replace(results, texts=(replace(results.texts[0], **changes), *results.texts[1:]))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda r: replace(r, base=replace(r.base, n_bytes=1)),
            "the size of the base is 1 here, 48000000000 in a",
        ),
        (lambda r: replace(r, activations="int8"), "activations is 'int8' here, 'exact' in a"),
        (lambda r: replace(r, hidden="bf16"), "hidden is 'bf16' here, 'f32' in a"),
        (lambda r: replace(r, texts=r.texts[:1]), "the list of texts is 'prose' here, 'prose, code' in a"),
        (change_text(n_ctx=256), "the length of the chunks of text 'prose' is 256 here, 512 in a"),
        (change_text(n_chunk=9), "the number of chunks of text 'prose' is 9 here, 8 in a"),
        (change_text(tokens_sha256="0"), "the SHA-256 of the tokens of text 'prose' is '0' here"),
        (
            lambda r: replace(r, speed_test=SpeedTest("x", 9, 512, 64)),
            "speed was measured otherwise than in a",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(
    results: Results, change: Callable[[Results], Results], said: str
) -> None:
    with pytest.raises(ChoiceError) as caught:
        merged([("a", results), ("b", change(results))])
    assert str(caught.value).startswith("b: ") and said in str(caught.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda d: d.pop("kind"), "holds no comparison"),
        (lambda d: d.update(schema=2), "is of version 2 of such files, this program reads 1"),
        (lambda d: d.update(models=[]), "damaged: models is empty"),
        (lambda d: d.update(activations="f8"), "damaged: activations is 'f8'"),
        (lambda d: d["base"].update(n_bytes=-1), "damaged: base.n_bytes is -1, an amount is expected"),
        (lambda d: d["models"][0].update(n_bytes=True), "damaged: models[0].n_bytes is True"),
        (lambda d: d["models"][1]["texts"].pop("code"), "damaged: models[1].texts.code. is None"),
        (lambda d: d["models"][1]["texts"]["code"].pop("kld"), "models[1].texts.code.kld is missing"),
        (lambda d: d["models"][0]["texts"]["code"].update(kld="x"), "code.kld is 'x', a number is expected"),
        (lambda d: d["models"][0]["texts"]["code"].update(kld_shares=[1]), "kld_shares has 1 numbers"),
    ],
)
def test_a_damaged_file_is_one_line(
    tmp_path: Path, results: Results, change: Callable[[Any], Any], said: str
) -> None:
    content = json.loads(compare_json(results))
    change(content)
    path = tmp_path / "x.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(ChoiceError) as caught:
        read_results(path)
    assert str(caught.value).startswith(f"{path}: ") and said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_plot_is_written_whole_or_not_at_all(tmp_path: Path, results: Results) -> None:
    path = tmp_path / "quality.svg"
    write_plot(results, path)
    assert "Pico-4x1M" in path.read_text(encoding="utf-8")
    with pytest.raises(OutputExistsError):
        write_plot(results, path)
    write_plot(results, path, force=True)
    with pytest.raises(OutputError, match=r"as \.svg or \.png"):
        write_plot(results, tmp_path / "quality.pdf")
    assert [found.name for found in tmp_path.iterdir()] == ["quality.svg"]
