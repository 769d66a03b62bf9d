"""The published pages: self-contained, safe with names of strangers, legible, and right in what they show."""

from __future__ import annotations

import math
import random
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from calibration.judging.matrix_errors import ErrorReport, Errors, LayerRouting, MatrixErrors
from gguf_export.reports.error_page import error_page
from gguf_export.reports.error_report import check_outputs, write_errors
from gguf_export.reports.figures import count, percent, plain, significant
from gguf_export.reports.html import Cell, Html, Scale, Section, heatmap, legend, page, table, terms, tiles
from gguf_export.reports.plot import (
    BOTTOM,
    CHAR_WIDTH,
    HEIGHT,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    Axis,
    Point,
    Series,
    plot,
)
from gguf_export.reports.style import COLOURS, N_LEVELS, RAMPS, SERIES, STYLE, contrast
from quantize.exceptions import OutputError

EVIL = '</title><script>alert("1")</script><img src=x onerror=y>&amp;\'"'
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


def make_report(n_layer: int = 3, n_expert: int = 4, model: str = "Pico-4x1M") -> ErrorReport:
    """Errors drawn by chance; expert 1 of layer 0 is starved, expert 2 of layer 1 was not judged."""
    rng = random.Random(0)

    def line(qtype: str, bid: int, projection: str, xid: int | None) -> MatrixErrors:
        level = {"Q4_K": 2e-3, "Q8_0": 1e-5}[qtype] * math.exp(rng.gauss(0, 0.4))
        starved, unjudged = (bid, xid) == (0, 1), (bid, xid) == (1, 2)
        nmse = None if unjudged else level
        plain = None if qtype == "Q8_0" else Errors(0.01, 0.07, None, nmse and 1.1 * nmse, 0.99)
        return MatrixErrors(
            name=f"blk.{bid}.{projection}{'_exps' if xid is not None else ''}.weight",
            xid=xid,
            qtype=qtype,
            n_elements=256,
            n_bytes=144,
            n_tokens=0 if starved else 100 + 10 * bid,
            n_effective=90.0,
            n_held_out=0 if unjudged else 20,
            n_judged=0 if unjudged else 20,
            errors=Errors(0.01, 0.07, 0.06, nmse, None if nmse is None else 1 - nmse / 2),
            plain=plain,
        )

    places: list[tuple[str, int | None]] = [("attn_q", None), ("attn_v", None)]
    places += [(name, xid) for name in ("ffn_gate", "ffn_down") for xid in range(n_expert)]
    rows = [line(q, bid, *place) for q in ("Q4_K", "Q8_0") for bid in range(n_layer) for place in places]
    facts = (("importances fitted on", "text.txt: 200 tokens"),)
    pairs = tuple(
        tuple(100 if one == other else one + other for other in range(n_expert)) for one in range(n_expert)
    )
    routing = (LayerRouting(0.5 * math.log(n_expert), pairs),) * n_layer
    return ErrorReport(model, n_layer, n_expert, 2, ("Q4_K", "Q8_0"), tuple(rows), 200, 40, facts, routing)


# -- the whole page


@pytest.mark.parametrize("document", [error_page(make_report()), error_page(make_report(40, 9))])
def test_page_is_self_contained_and_well_formed(document: str) -> None:
    found = Checker(document)
    names = {name for name, _ in found.tags}
    assert not names & {"script", "link", "img", "iframe", "object", "base", "form"}
    for _, attributes in found.tags:
        assert not {"src", "href", "action", "onload", "onclick"} & set(attributes)
    assert (
        "url(" not in document
        and "@import" not in document
        and "http" not in re.sub("http-equiv", "", document)
    )
    assert "Content-Security-Policy" in document and "default-src 'none'" in re.sub("&#x27;", "'", document)
    assert {"viewport", "color-scheme"} <= {one.get("name") for one in found.having("meta")}
    identifiers = [one["id"] for _, one in found.tags if "id" in one]
    assert len(identifiers) == len(set(identifiers))
    assert {one["for"] for one in found.having("label")} == set(identifiers)
    assert "nan" not in document and "None" not in document and "inf" not in re.sub("inform", "", document)


def test_names_of_strangers_stay_text() -> None:
    document = error_page(make_report(model=EVIL))
    found = Checker(document)
    assert EVIL in "".join(found.texts)
    assert {name for name, _ in found.tags}.isdisjoint({"script", "img"})


def test_every_piece_escapes() -> None:
    cell = Cell(1.0, EVIL, EVIL)
    scale = Scale(0.0, 1.0)
    pieces = [
        table((EVIL, ">" + EVIL), [(EVIL, EVIL)], EVIL),
        tiles([(EVIL, EVIL, EVIL)]),
        terms([(EVIL, EVIL)]),
        heatmap(EVIL, EVIL, [EVIL], EVIL, [EVIL], [[cell]], scale, "error"),
        legend(EVIL, scale, lambda value: EVIL, "error", EVIL),
        plot(EVIL, [Series(EVIL, [Point(1, 1, name=EVIL)])] * 2, Axis(EVIL, show=lambda _: EVIL), Axis(EVIL)),
    ]
    for piece in [*pieces, page(EVIL, EVIL, [Section(EVIL, Html(""), EVIL)], EVIL)]:
        found = Checker(piece)
        assert {name for name, _ in found.tags}.isdisjoint({"script", "img"}), piece
        assert not any("onerror" in attributes for _, attributes in found.tags)
        assert EVIL in "".join(found.texts)


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
    n_starved = len(found.having("td", "warn"))
    assert (
        n_starved == 1 + 2 * 2
    )  # one in the map of tokens; the unjudged one in two projections of two types


def test_a_dense_model_has_no_map_of_tokens() -> None:
    rows = tuple(row for row in make_report().rows if row.xid is None)
    document = error_page(ErrorReport("Dense", 3, 0, 0, ("Q4_K", "Q8_0"), rows, 200, 40))
    Checker(document)
    assert (
        "Where the tokens went" not in document and "expert" not in document.split("What the numbers mean")[0]
    )


def test_large_models_stay_readable() -> None:
    document = error_page(make_report(48, 64))
    assert len(document) < 3e6
    found = Checker(document)
    assert all("many" in (one["class"] or "") for one in found.having("table", "heat"))
    assert len(found.having("input", "switch")) == 3  # numbers on demand: tokens and two types


# -- colours


@pytest.mark.parametrize("shade", [0, 1], ids=["light", "dark"])
def test_contrast_is_enough_to_read(shade: int) -> None:
    colours = {name: pair[shade] for name, pair in COLOURS.items()}
    for name in ("ink", "soft"):
        for ground in ("paper", "card"):
            assert contrast(colours[name], colours[ground]) >= 4.5, (name, ground)
    for name in ("accent", "warn"):
        assert contrast(colours[name], colours["paper"]) >= 3
    for pair in SERIES:
        assert contrast(pair[shade], colours["paper"]) >= 3
    variables = dict(re.findall(r"--([\w-]+):(#\w+)", STYLE.split("@media")[shade]))
    for name, ramps in RAMPS.items():
        assert len(ramps[shade]) == N_LEVELS
        for level, colour in enumerate(ramps[shade]):
            assert variables[f"{name}{level}"] == colour
            assert contrast(variables[f"on-{name}{level}"], colour) >= 4.5


@pytest.mark.parametrize("name", RAMPS)
def test_ramps_rise_evenly(name: str) -> None:
    for shade, ramp in enumerate(RAMPS[name]):
        apart = [contrast(colour, COLOURS["paper"][shade]) for colour in ramp]
        assert apart == sorted(apart)  # more is further from the paper


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
    found = Checker(table(("name", ">number"), [("a", Html("<b>1</b>"))], "caption"))
    assert ("b", {}) in found.tags and "caption" in found.texts
    assert len(found.having("td", "n")) == 1 and found.having("th")[0] == {"scope": "col"}


def numbers(figure: str) -> list[tuple[float, float]]:
    """The points of the lines of a plot."""
    lines = re.findall(r'<path d="M([\d.,L-]+)"/>', figure)
    pairs = (pair.split(",") for line in lines for pair in line.split("L"))
    return [(float(x), float(y)) for x, y in pairs]


def test_plot_puts_points_where_they_belong() -> None:
    points = [Point(4.5, 1e-2), Point(5.5, 1e-3), Point(8.5, 1e-5)]
    figure = plot("title", [Series("a", points)], Axis("x"), Axis("y", log=True))
    Checker(figure)
    (x0, y0), (x1, y1), (x2, y2) = numbers(figure)
    assert LEFT < x0 < x1 < x2 < WIDTH - RIGHT and TOP < y0 < y1 < y2 < HEIGHT - BOTTOM
    assert (x1 - x0) / (x2 - x0) == pytest.approx(1 / 4, abs=0.01)
    assert (y1 - y0) / (y2 - y0) == pytest.approx(1 / 3, abs=0.01)


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize(
    "values", [(1.0,), (3.0, 3.0), (0.001, 1000.0), (0.98, 1.0), (7.0, 8.0), (1e-9, 2e-9)]
)
def test_ticks_are_round_and_within(values: tuple[float, ...], log: bool) -> None:
    drawn = Axis("x", log=log).over(values)
    assert drawn.low < min(values) and max(values) < drawn.high
    assert 1 <= len(drawn.ticks) <= 12 and len(set(drawn.ticks)) == len(drawn.ticks)
    for tick in drawn.ticks:
        assert drawn.low <= tick <= drawn.high
        assert re.fullmatch(r"\d\.\d?\d?0*e[+-]\d+", f"{tick:.8e}"), tick


def test_what_a_plot_cannot_draw_is_left_out() -> None:
    points = [Point(1, 0.0), Point(2, 0.1, low=0.0, high=0.2), Point(3, math.nan), Point(math.inf, 1.0)]
    figure = plot("title", [Series("a", points)], Axis("x"), Axis("y", log=True))
    Checker(figure)
    assert figure.count("<title>") == 1 and "nan" not in figure
    assert plot("title", [Series("a", [])], Axis("x"), Axis("y")) == ""


def test_names_stand_beside_points_without_touching() -> None:
    crowd = [Point(5 + i / 50, 1.0, name=f"model number {i}") for i in range(40)]
    figure = plot(
        "t", [Series("a", crowd, line=False), Series("b", crowd, named=False)], Axis("x"), Axis("y")
    )
    found = re.findall(r'class="name" x="([\d.]+)" y="([\d.]+)" text-anchor="(\w+)">([^<]+)<', figure)
    assert 2 <= len(found) < 40
    assert all(f"<title>{point.name}, a: " in figure for point in crowd)  # hovering tells them all
    boxes = []
    for x, y, anchor, name in found:
        left = float(x) - (0 if anchor == "start" else CHAR_WIDTH * len(name))
        boxes.append((left, left + CHAR_WIDTH * len(name), float(y)))
    for i, (left, right, y) in enumerate(boxes):
        assert left >= 0 and right <= WIDTH
        assert not any(left < r and le < right and abs(y - other) < 12 for le, r, other in boxes[:i])
    long = plot("t", [Series("", [Point(1, 1, name="x" * 200 + "Q4_K_M")])], Axis("x"), Axis("y"))
    assert re.search(r">…x+Q4_K_M</text>", long)


def test_the_lead_says_on_how_many_tokens() -> None:
    assert "on up to 20 of the 40 held-out tokens of text" in error_page(make_report())


def test_a_long_list_of_starved_experts_is_cut() -> None:
    report = make_report(3, 30)
    rows = tuple(replace(row, n_tokens=0) if row.xid is not None else row for row in report.rows)
    document = error_page(replace(report, rows=rows))
    assert "… and 70 more" in document and "layer 0, expert 19" in document
    assert "layer 2, expert 29<" not in document


def test_reports_appear_whole_and_replace_no_folder(tmp_path: Path) -> None:
    (tmp_path / "a.csv").mkdir()
    with pytest.raises(OutputError, match="is no file"):
        check_outputs([tmp_path / "a.csv"], force=True)
    write_errors(tmp_path / "b.json", make_report())
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["b.json"]


def test_figures() -> None:
    assert [plain(value) for value in (0, 0.1, 0.001, 0.015, 20, 100, 1e-5, 1e-6)] == [
        *("0", "0.1", "0.001", "0.015", "20", "100", "0.00001", "1e-06")
    ]
    assert [significant(value) for value in (0, 1234.5, 0.0012345, 9.999, -0.5, 1e-30)] == [
        *("0", "1,234", "0.00123", "10.0", "-0.500", "1.00e-30")
    ]
    assert percent(0.002016) == "0.202 %" and percent(1.0, 2) == "100 %" and count(12345.6) == "12,346"
    assert significant(None) == percent(None) == count(None) == significant(math.nan) == "-"
