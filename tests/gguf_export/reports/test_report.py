"""The published pages: self-contained, safe with names of strangers, legible, and right in what they show."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path

import pytest
from measured import EVIL, make_report, make_results

from calibration.judging.matrix_errors import ErrorReport
from gguf_export.reports.canvas import PALETTE, SERIES_COLOURS
from gguf_export.reports.compare_page import compare_page
from gguf_export.reports.error_page import error_page
from gguf_export.reports.error_report import check_outputs, write_errors
from gguf_export.reports.figures import count, percent, plain, significant
from gguf_export.reports.heat_maps import N_LEVELS, Cell, HeatMap, Legend, Scale
from gguf_export.reports.pages import Details, Page, PagePart, Panels, Section, Table, Terms, Tiles
from gguf_export.reports.plots import Axis, Plot, Point, Series
from gguf_export.reports.rendering import render
from quantize.exceptions import OutputError

VOID = {"meta", "input", "img", "br", "link"}


class Checker(HTMLParser):
    """Fails on tags that do not match; keeps tags, attributes and text."""

    def __init__(self, document: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(document)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, f"</{tag}> at {self.getpos()}"

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def having(self, tag: str, kind: str = "") -> list[dict[str, str | None]]:
        """Attributes of the elements of a tag, of one class if that is given."""
        return [found for name, found in self.tags if name == tag and kind in (found.get("class") or "")]


# -- the whole page


PAGES = {
    "errors": lambda: error_page(make_report()),
    "errors of a large model": lambda: error_page(make_report(40, 9)),
    "comparison": lambda: compare_page(make_results(9, ("prose", "code"), n_layer=32)),
    "comparison of one model": lambda: compare_page(make_results(1)),
}


@pytest.mark.parametrize("name", PAGES)
def test_page_is_self_contained_and_well_formed(name: str) -> None:
    document = PAGES[name]()
    found = Checker(document)
    names = {name for name, _ in found.tags}
    assert not names & {"script", "link", "img", "iframe", "object", "base", "form"}
    for _, attributes in found.tags:
        assert not {"src", "action", "onload", "onclick"} & set(attributes)
        assert (attributes.get("href") or "#").startswith("#")  # a marker, drawn many times
    assert (
        "url(" not in document
        and "@import" not in document
        and "http" not in re.sub("http-equiv", "", document)
    )
    assert "Content-Security-Policy" in document and "default-src 'none'" in re.sub("&#x27;", "'", document)
    assert {"viewport", "color-scheme"} <= {one.get("name") for one in found.having("meta")}
    identifiers = [one["id"] for _, one in found.tags if "id" in one]
    assert len(identifiers) == len(set(identifiers))
    assert {one["for"] for one in found.having("label")} <= set(identifiers)
    assert {(one["href"] or "").removeprefix("#") for one in found.having("use")} <= set(identifiers)
    assert len(found.having("meta")) == 4 and document.count("<style") == 1
    assert "nan" not in document and "None" not in document and "inf" not in re.sub("inform", "", document)


def test_names_of_strangers_stay_text() -> None:
    document = error_page(make_report(model=EVIL))
    found = Checker(document)
    assert EVIL in "".join(found.texts)
    assert {name for name, _ in found.tags}.isdisjoint({"script", "img"})


def every_part(text: str) -> list[PagePart]:
    """A part of each kind, with the same text wherever one can stand."""
    cell, scale = Cell(1.0, text, text), Scale(0.0, 1.0)
    axis = Axis(text, show=lambda _: text)
    points = [Point(1, 1, name=text), Point(2, 3, 2, 4, name=text)]
    return [
        Table((text, ">" + text), [(text, text)], text),
        Tiles([(text, text, text)]),
        Terms([(text, text)]),
        Panels([HeatMap(text, text, [text], text, [text], [[cell]], scale, "error")]),
        Legend(text, text, text, "error", [text]),
        Plot(text, [Series(text, points), Series(text, points)], axis, axis),
        Plot(text, [Series(text, points), Series(text, points)], axis, axis, text, is_wide=True),
        Details(text, [Table((text, ">" + text), [(text, text)], text, is_tight=True)]),
    ]


@pytest.mark.parametrize("index", range(len(every_part(""))))
def test_every_part_escapes(index: int) -> None:
    document = render(Page(EVIL, EVIL, [Section(EVIL, [every_part(EVIL)[index]], EVIL)], EVIL))
    found = Checker(document)
    assert {name for name, _ in found.tags}.isdisjoint({"script", "img"})
    assert not any("onerror" in attributes for _, attributes in found.tags)
    assert EVIL in "".join(found.texts)


def test_what_does_not_print_is_shown_escaped() -> None:
    name = "a\x1b[31m\nb\u202ec\ud800"
    document = render(Page(name, name, [Section(name, every_part(name), name)], name))
    Checker(document)
    document.encode("utf-8")  # a name of a file may hold half of a character
    assert not any(char in document for char in "\x1b\u202e\ud800") and "a\nb" not in document
    assert document.count(r"a\x1b[31m\nb\u202ec\ud800") > 20


def test_page_shows_what_the_report_says() -> None:
    report = make_report()
    found = Checker(error_page(report))
    told = {one.get("title") or "" for one in found.having("td")}
    for row in report.rows:
        if row.errors.nmse is not None:
            assert any(title.startswith(f"{row.place}: {percent(row.errors.nmse)}") for title in told), (
                row.place
            )
        else:
            assert f"{row.place}: no held-out token" in told
    text = " ".join(found.texts)
    for said in (
        "layer 0, expert 1",
        "no calibration token",
        "layer 1, expert 2",
        "no held-out token",
        "text.txt",
    ):
        assert said in text
    for one, other in ((0, 1), (1, 0), (2, 3)):
        assert f"experts {one} and {other} together: {percent((one + other) / 200)}" in told
    assert "Entropy of the router by layer: at 1 it cannot tell the experts apart" in text
    n_unseen = len(found.having("td", "warn"))
    assert n_unseen == 1 + 2 * 2  # one in the map of tokens; the unjudged one in two projections of two types


def test_a_dense_model_has_no_map_of_tokens() -> None:
    rows = tuple(row for row in make_report().rows if row.xid is None)
    document = error_page(ErrorReport("Dense", 3, 0, 0, ("Q4_K", "Q8_0"), rows, 200, 40))
    Checker(document)
    assert (
        "Where the tokens went" not in document and "expert" not in document.split("What the numbers mean")[0]
    )


@pytest.mark.slow
def test_large_models_stay_readable() -> None:
    document = error_page(make_report(48, 64))
    assert len(document) < 3e6
    found = Checker(document)
    assert all("dense" in (one["class"] or "") for one in found.having("table", "heat"))
    assert len(found.having("input", "switch")) == 3  # numbers on demand: tokens and two types


# -- colours


STYLE = (files("gguf_export.reports") / "templates" / "page.css").read_text(encoding="utf-8")

VARIABLES = [dict(re.findall(r"--([\w-]+): (#\w{6});", part)) for part in STYLE.split("@media")[:2]]
"""Name -> colour, in the light and in the dark."""


def luminance(colour: str) -> float:
    """Relative luminance of #rrggbb (WCAG 2)."""
    channels = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    r, g, b = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


def contrast(one: str, other: str) -> float:
    """Contrast ratio of two colours (WCAG 2), 1 to 21; text needs 4.5."""
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("colours", VARIABLES, ids=["light", "dark"])
def test_contrast_is_enough_to_read(colours: dict[str, str]) -> None:
    for name in ("ink", "soft"):
        for ground in ("paper", "card"):
            assert contrast(colours[name], colours[ground]) >= 4.5, (name, ground)
    for name in ("accent", "warn", *(f"s{index}" for index in range(len(SERIES_COLOURS)))):
        assert contrast(colours[name], colours["paper"]) >= 3, name
    for name in ("load", "error"):
        for level in range(N_LEVELS):
            assert contrast(colours[f"on-{name}{level}"], colours[f"{name}{level}"]) >= 4.5


@pytest.mark.parametrize("colours", VARIABLES, ids=["light", "dark"])
def test_ramps_rise_evenly(colours: dict[str, str]) -> None:
    for name in ("load", "error"):
        apart = [contrast(colours[f"{name}{level}"], colours["paper"]) for level in range(N_LEVELS)]
        assert apart == sorted(apart)  # more is further from the paper
        assert f".{name} .c{N_LEVELS - 1} {{" in STYLE and f".c{N_LEVELS} " not in STYLE


def test_drawings_have_the_colours_of_the_style_sheet() -> None:
    assert PALETTE.items() <= VARIABLES[0].items() and VARIABLES[0].keys() == VARIABLES[1].keys()


def test_contrast_is_that_of_wcag() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.478, abs=1e-3)


# -- pieces


def test_scale_levels() -> None:
    even = Scale.over([0.5, None, 1.0], low=0.0)
    assert [even.level(value) for value in (0.0, 0.124, 0.126, 0.5, 1.0, 2.0)] == [0, 0, 1, 4, 7, 7]
    ratios = Scale.over([1e-4, 1e-2, 0.0, None], log=True)
    assert (ratios.low, ratios.high) == (1e-4, 1e-2)
    assert [ratios.level(value) for value in (0.0, 1e-4, 1.01e-3, 1e-2)] == [0, 0, 4, 7]
    assert Scale.over([None], log=True).level(3.0) == 0 and Scale.over([2.0, 2.0]).level(2.0) == 0


def test_table_columns_and_cells() -> None:
    part = Table(("name", ">number"), [("a", "1")], "caption")
    found = Checker(render(Page("", "", [Section("", [part])])))
    assert "caption" in found.texts and len(found.having("td", "n")) == 1
    assert found.having("th") == [{"scope": "col"}, {"scope": "col", "class": "n"}, {"scope": "row"}]


def test_a_page_of_24_levels_is_small() -> None:
    comparison = make_results(24, ("prose", "code", "chat"), n_layer=48)
    assert len(compare_page(comparison).encode()) < 600_000


def test_equal_figures_give_equal_pages() -> None:
    assert compare_page(make_results(4)) == compare_page(make_results(4))
    assert error_page(make_report()) == error_page(make_report())


def test_the_lead_says_on_how_many_tokens() -> None:
    assert "on up to 20 of the 40 held-out tokens of text" in error_page(make_report())


def test_a_long_list_of_unseen_experts_is_cut() -> None:
    report = make_report(3, 30)
    rows = tuple(replace(row, n_tokens=0) if row.xid is not None else row for row in report.rows)
    document = error_page(replace(report, rows=rows))
    assert "… and 70 more" in document and "layer 0, expert 19" in document
    assert "layer 2, expert 29<" not in document
    assert "layer 0, expert 0; layer 0, expert 1; " in document  # among the first figures


def test_reports_appear_whole_and_replace_no_folder(tmp_path: Path) -> None:
    (tmp_path / "a.csv").mkdir()
    with pytest.raises(OutputError, match="is a folder"):
        check_outputs([tmp_path / "a.csv"], force=True)
    write_errors([tmp_path / "b.json"], make_report())
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["b.json"]


def test_tables_and_data_need_neither_templates_nor_plots() -> None:
    script = (
        "import sys\n"
        "from gguf_export.reports import compare_data, compare_tables, error_report, error_tables\n"
        "print([name for name in ('jinja2', 'matplotlib') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_figures() -> None:
    assert [plain(value) for value in (0, 0.1, 0.001, 0.015, 20, 100, 1e-5, 1e-6)] == [
        *("0", "0.1", "0.001", "0.015", "20", "100", "0.00001", "1e-06")
    ]
    assert [significant(value) for value in (0, 1234.5, 0.0012345, 9.999, -0.5, 1e-30)] == [
        *("0", "1,234", "0.00123", "10.0", "-0.500", "1.00e-30")
    ]
    assert percent(0.002016) == "0.202 %" and percent(1.0, 2) == "100 %" and count(12345.6) == "12,346"
    assert significant(None) == percent(None) == count(None) == significant(math.nan) == "-"
