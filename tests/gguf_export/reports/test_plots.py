"""Plots: where points, ticks and names stand, what is left out, and pictures that are equal where plots are equal."""

from __future__ import annotations

import logging
import math
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import matplotlib
import pytest
from measured import EVIL, make_results

from gguf_export.reports.compare_plots import kld_by_size, plot_png, plot_svg, ppl_by_size
from gguf_export.reports.drawing import PAGE_SIZE, png_file, svg_file, svg_for_page, wide_svg_for_page
from gguf_export.reports.plots import Axis, Plot, Point, Series
from gguf_export.reports.spans import Span

SVG = "{http://www.w3.org/2000/svg}"


def plot_of(*points: Point, log: bool = False, name: str = "") -> Plot:
    return Plot("title", [Series(name, points)], Axis("x"), Axis("y", log=log))


def markers(picture: str) -> list[tuple[float, float]]:
    """The places of the markers of an SVG element for a page."""
    return [
        (float(use.get("x", "nan")), float(use.get("y", "nan")))
        for use in ElementTree.fromstring(picture).iter("use")
        if use.find("title") is not None
    ]


def hover_texts(picture: str) -> list[str | None]:
    return [title.text for title in ElementTree.fromstring(picture).iter("title")]


def names(picture: str, known: set[str]) -> list[tuple[float, float, str, str]]:
    """(x, y, anchor, name) of each name that stands beside a point."""
    places = []
    for text in ElementTree.fromstring(picture).iter("text"):
        if text.text in known:
            anchor = re.search(r"text-anchor: (\w+)", text.get("style", ""))
            assert anchor is not None
            places.append((float(text.get("x", 0)), float(text.get("y", 0)), anchor[1], text.text or ""))
    return places


def test_points_are_where_they_belong() -> None:
    picture = svg_for_page(plot_of(Point(4.5, 1e-2), Point(5.5, 1e-3), Point(8.5, 1e-5), log=True))
    (x0, y0), (x1, y1), (x2, y2) = markers(picture)
    assert 40 < x0 < x1 < x2 < PAGE_SIZE[0] and 30 < y0 < y1 < y2 < PAGE_SIZE[1]
    assert (x1 - x0) / (x2 - x0) == pytest.approx(1 / 4, abs=0.01)
    assert (y1 - y0) / (y2 - y0) == pytest.approx(1 / 3, abs=0.01)


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize(
    "values", [(1.0,), (3.0, 3.0), (0.001, 1000.0), (0.98, 1.0), (7.0, 8.0), (1e-9, 2e-9), (1.15, 1.2)]
)
def test_ticks_are_round_and_within(values: tuple[float, ...], log: bool) -> None:
    span = Span.over(Axis("x", log=log), values)
    assert span.low < min(values) and max(values) < span.high
    assert 1 <= len(span.ticks) <= 8 and len(set(span.ticks)) == len(span.ticks)
    for tick in span.ticks:
        assert span.low <= tick <= span.high
        assert re.fullmatch(r"\d\.\d?\d?0*e[+-]\d+", f"{tick:.8e}"), tick
    assert len(set(span.labels)) == len(span.labels)


@pytest.mark.parametrize("n_layer", [2, 3, 40])
def test_layers_are_whole_numbers(n_layer: int) -> None:
    ticks = Span.over(Axis("layer", whole=True), range(n_layer)).ticks
    assert ticks and all(tick == int(tick) for tick in ticks)


def test_what_an_axis_cannot_show_is_left_out() -> None:
    points = [Point(1, 0.0), Point(2, 0.1, low=0.0, high=0.2), Point(3, math.nan), Point(math.inf, 1.0)]
    picture = svg_for_page(plot_of(*points, log=True))
    assert hover_texts(picture) == [": 2, 0.1"] and "nan" not in picture
    assert plot_of().is_empty and plot_of(Point(1, -1), log=True).is_empty
    assert not plot_of(Point(1, -1)).is_empty
    assert "no point can be drawn" in svg_file(plot_of()) and png_file(plot_of())


def test_ranges_are_bars() -> None:
    assert svg_for_page(plot_of(Point(1, 1), Point(2, 2))).count("stroke-width: 1.6") == 1  # the line
    assert svg_for_page(plot_of(Point(1, 1, 0.5, 2), Point(2, 2))).count("stroke-width: 1.6") == 2


def test_names_stand_beside_points_without_touching() -> None:
    crowd = [Point(5 + i / 50, 1.0 + i % 7, name=f"model number {i}") for i in range(40)]
    plot = Plot("t", [Series("a", crowd, line=()), Series("b", crowd, named=False)], Axis("x"), Axis("y"))
    picture = svg_for_page(plot)
    assert all(f"{point.name}, a: 5" in "|".join(map(str, hover_texts(picture))) for point in crowd)
    width = 84  # of "model number 1" in 12 points of DejaVu Sans, a wide font
    boxes: list[tuple[float, float, float]] = []
    shown = names(picture, {point.name for point in crowd})
    assert 5 <= len(shown) < 40
    for x, y, anchor, _ in shown:
        left = x - {"start": 0, "middle": width / 2, "end": width}[anchor]
        assert left >= 0 and left + width <= PAGE_SIZE[0]
        assert not any(
            left < right and start < left + width and abs(y - other) < 11 for start, right, other in boxes
        )
        boxes.append((left, left + width, y))


def test_of_a_long_name_the_end_is_shown() -> None:
    picture = svg_for_page(plot_of(Point(1, 1, name="x" * 200 + "Q4_K_M")))
    assert re.search(r">…x+Q4_K_M</text>", picture)


def test_names_keep_off_lines() -> None:
    plot = plot_of(*(Point(x, 9 - x, name=f"name {x}") for x in range(9)))
    picture = svg_for_page(plot)
    shown = names(picture, {f"name {x}" for x in range(9)})
    assert len(shown) >= 8 and all(
        anchor == "start" for _, _, anchor, _ in shown[:8]
    )  # right of a falling line


@pytest.mark.parametrize(
    "name", [EVIL, "$x_2$", "$\\frac{1}{0}$", "_hidden", "日本語", "50 %", "\x1b[0m\ud800", ""]
)
def test_names_are_text_and_nothing_else(name: str, recwarn: pytest.WarningsRecorder) -> None:
    points = [Point(1, 1, name=name), Point(2, 2)]
    plot = Plot(name, [Series(name, points), Series(f"{name}2", points)], Axis(name), Axis(name))
    assert png_file(plot).startswith(b"\x89PNG")
    text = "".join(ElementTree.fromstring(svg_file(plot)).itertext())
    for picture in (svg_for_page(plot), svg_file(plot)):
        picture.encode("utf-8")
        root = ElementTree.fromstring(picture)
        assert {element.tag.rpartition("}")[2] for element in root.iter()}.isdisjoint({"script", "img"})
    if name.isprintable():
        assert f"{name}2"[-20:] in text
    assert not recwarn.list


def test_a_page_gives_a_drawing_its_colours_and_font() -> None:
    picture = svg_for_page(plot_of(Point(1, 1, name="a"), Point(2, 2)))
    assert {"var(--ink)", "var(--soft)", "var(--line)", "var(--paper)", "var(--s0)"} <= set(
        re.findall(r"var\(--\w+\)", picture)
    )
    assert not re.search(r"#[0-9a-f]{6}", picture) and "font-family" not in picture and "url(" not in picture
    assert "<style" not in picture and "xmlns" not in picture
    assert ElementTree.fromstring(picture).get("aria-label") == "title: y by x"


def test_a_file_stands_alone() -> None:
    root = ElementTree.fromstring(svg_file(plot_of(Point(1, 1), Point(2, 2))))
    assert root.tag == f"{SVG}svg" and "title" in [text.text for text in root.iter(f"{SVG}text")]
    ground = next(root.iter(f"{SVG}path"))
    assert "#ffffff" in ground.get("style", "")  # opaque: a card may be read in the dark


# -- of a comparison


def test_a_line_joins_the_levels_that_no_other_beats() -> None:
    comparison = make_results(5, kld={"Q6_K": 0.5})  # larger and worse than others
    series = kld_by_size(comparison).series[0]
    assert series.line is not None
    assert [point.name for point in series.points] == ["Q4_K_S", "Q4_K_M", "Q5_K_M", "Q6_K", "Q8_0"]
    assert [point.name for point in series.line] == ["Q4_K_S", "Q4_K_M", "Q5_K_M", "Q8_0"]


def test_sizes_have_their_unit() -> None:
    assert kld_by_size(make_results(3)).x.label == "size in GB"
    assert ppl_by_size(make_results(3, n_weight=1e6)).x.label == "size in MB"


def test_the_plot_of_a_comparison_is_a_file(tmp_path: Path) -> None:
    comparison = make_results(9, ("prose", "code"))
    document, image = plot_svg(comparison), plot_png(comparison)
    shown = "".join(ElementTree.fromstring(document).itertext())
    assert "Pico-4x1M: mean KL divergence by size, ± one standard error, over 2 texts" in shown
    assert all(
        word in shown for word in ("size in GB", "mean KLD in nats", "Q4_K_M", "Q2_K", "no other beats")
    )
    assert image.startswith(b"\x89PNG") and int.from_bytes(image[16:20], "big") == 1600
    assert (plot_svg(comparison), plot_png(comparison)) == (document, image)


SCRIPT = """
import hashlib, sys
from gguf_export.reports.drawing import png_file, svg_file, svg_for_page
from gguf_export.reports.plots import Axis, Plot, Point, Series
points = [Point(1, 1, 0.5, 2, "日本"), Point(2, 3, None, None, "b")]
plot = Plot("t", [Series("a", points), Series("b", points)], Axis("x"), Axis("y", log=True))
for made in (svg_for_page(plot), svg_file(plot), png_file(plot)):
    print(hashlib.sha256(made if isinstance(made, bytes) else made.encode()).hexdigest())
"""


def test_equal_plots_are_equal_everywhere_and_silent(tmp_path: Path) -> None:
    """Another hash seed, another matplotlibrc, a home folder that cannot be written: the same bytes, nothing said."""
    settings = tmp_path / "matplotlibrc"
    settings.write_text("text.usetex: True\nlines.linewidth: 9\nsvg.fonttype: path\n", encoding="utf-8")
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("MPL", "XDG", "HOME"))}
    outputs = []
    for seed, more in (("1", {"HOME": os.devnull}), ("2", {"MATPLOTLIBRC": str(settings)})):
        environment = {**kept, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path), **more}
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", SCRIPT],
            check=False,
            capture_output=True,
            text=True,
            env=environment,
            timeout=600,
        )
        assert (done.returncode, done.stderr) == (0, "")
        outputs.append(done.stdout)
    assert outputs[0] == outputs[1] and len(set(outputs[0].split())) == 3


def test_no_folder_for_a_font_cache_is_one_clear_error() -> None:
    script = (
        "import tempfile\n"
        "def refuse(*_, **__): raise FileNotFoundError('No usable temporary directory')\n"
        "tempfile.mkdtemp = refuse\n"
        "from quantize.exceptions import OutputError\n"
        "try: import gguf_export.reports.drawing\n"
        "except OutputError as error: print(error)\n"
    )
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("MPL", "XDG"))}
    environment = {**kept, "HOME": os.devnull, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=True
    )
    assert done.stdout.startswith("plots: matplotlib has no folder to write its font cache to: ")
    assert done.stdout.endswith("; set MPLCONFIGDIR to one\n")
    assert done.stdout.count("\n") == 1 and not done.stderr


def test_settings_and_loggers_of_others_stay() -> None:
    level = logging.getLogger("matplotlib").level
    with matplotlib.rc_context({"lines.linewidth": 9.0}):
        svg_file(plot_of(Point(1, 1)))
        assert matplotlib.rcParams["lines.linewidth"] == 9.0
    assert logging.getLogger("matplotlib").level == level


def test_files_that_lose_nothing_do_not_stretch_the_axes() -> None:
    plot = kld_by_size(make_results(21, kld={"MXFP4_MOE": 1e-11}))
    drawn = {point.name for point in plot.series[0].points}
    assert len(drawn) == 18 and not drawn & {"F16", "BF16", "MXFP4_MOE"}
    assert "Not drawn, as they lose next to nothing: F16 (0), BF16 (0), MXFP4_MOE (0)." in plot.note
    assert min(point.low or 1 for point in plot.series[0].points) > 1e-5


@pytest.mark.parametrize("draw", [svg_for_page, wide_svg_for_page, svg_file])
def test_every_name_of_19_files_has_its_place(draw: Callable[[Plot], str]) -> None:
    plot = kld_by_size(make_results(21))
    wanted = {point.name for point in plot.series[0].points}
    assert len(wanted) == 19
    shown = [text.text for text in ElementTree.fromstring(draw(plot)).iter() if text.tag.endswith("text")]
    assert wanted <= set(shown)
