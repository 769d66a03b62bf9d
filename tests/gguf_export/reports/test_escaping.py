"""Names of strangers in every report: they stay text in HTML, cells in CSV, words in Markdown, valid in JSON."""

from __future__ import annotations

import csv
import html
import io
import json
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from measured import EVIL, make_comparison, make_report

from calibration.importance.imatrix import Imatrix
from calibration.judging.matrix_errors import ErrorReport
from calibration.judging.model import Model
from gguf_export.comparing.measured import results_of
from gguf_export.comparing.results import Results
from gguf_export.reports.compare_data import compare_csv, compare_json
from gguf_export.reports.compare_page import compare_page
from gguf_export.reports.compare_plots import plot_png, plot_svg
from gguf_export.reports.compare_tables import compare_markdown
from gguf_export.reports.data_texts import FORMULA, csv_text, json_text
from gguf_export.reports.error_page import error_page
from gguf_export.reports.error_report import errors_csv, errors_json
from gguf_export.reports.markdown import markdown_text
from quantize.containers.untrusted import printable

NASTY = {
    "html": EVIL,
    "formula": "=HYPERLINK(1)",
    "plus": "+1+cmd",
    "minus": "-2+3",
    "at": "@SUM(A1)",
    "behind a space": " =1+1",
    "full-width": "\uff1d1+1",
    "tab": "\t=1+1",
    "return": "\r=1+1",
    "lines": "a\r\n\n# heading\n| b |",
    "markdown": "![i](https://x.example/i.png) [l](javascript:x) `c` **b** ~~s~~ <https://x.example> $m$",
    "escape": "a\x1b[31m\x07\x9b0m",
    "direction": "a\u202eb\u2066c\u200f",
    "separators": "a\u2028b\u0085c\x00",
    "no utf-8": "w\udcff",
    "half": "h\ud800",
}


DRAWN = ("html", "markdown", "escape", "direction", "half")
"""Those that could harm a page or a drawing, which take a while."""


def evil_results(name: str) -> Results:
    """A comparison in which everything that can have a name has this one."""
    made = make_comparison(3, (name, f"other {name}"), base=name)
    checkpoint: Any = SimpleNamespace(kind="checkpoint")  # reports ask nothing else of a source
    trip: Any = SimpleNamespace(kind="round trip")
    imatrix = Imatrix({}, [name], 3, 512, file=name)
    models = (
        replace(made.models[0], name=f"{name}.gguf"),
        replace(made.models[1], name=f"{name}-Q4_K_M.gguf"),
        Model(f"{name} (round trip)", trip, 10_000_000_000, 4.0, imatrix),
    )
    return results_of(replace(made, base=Model(name, checkpoint, 48_000_000_000, 16.0), models=models))


def evil_report(name: str) -> ErrorReport:
    """An error report in which everything that can have a name has this one."""
    made = make_report(2, 3, model=name)
    rows = tuple(replace(row, name=f"{name}.{row.name}") for row in made.rows)
    return replace(made, rows=rows, facts=((name, f"{name}: 200 tokens"),))


class Tags(HTMLParser):
    """The elements of a page, each with its attributes but without their values."""

    def __init__(self, document: str) -> None:
        super().__init__()
        self.found: set[tuple[str, ...]] = set()
        self.feed(document)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.add((tag, *sorted(name for name, _ in attrs)))


def refuse_what_does_not_print(text: str) -> None:
    """No text that is published holds a control character, a turn of the direction of writing, or half a character."""
    text.encode("utf-8")
    odd = {char for char in text if unicodedata.category(char) in ("Cc", "Cf", "Cs", "Zl", "Zp")}
    assert not odd - {"\n"}, {ascii(char) for char in odd}


@pytest.mark.parametrize("name", DRAWN)
def test_pages(name: str) -> None:
    for page, tame in (
        (compare_page(evil_results(NASTY[name])), compare_page(evil_results("tame"))),
        (error_page(evil_report(NASTY[name])), error_page(evil_report("tame"))),
    ):
        assert Tags(page).found <= Tags(tame).found | {("rect",)}
        refuse_what_does_not_print(page)


@pytest.mark.parametrize("name", NASTY)
def test_csv(name: str) -> None:
    for text in (compare_csv(evil_results(NASTY[name])), errors_csv(evil_report(NASTY[name]))):
        refuse_what_does_not_print(text)
        head, *lines = csv.reader(io.StringIO(text, newline=""))
        assert len(lines) > 5 and {len(line) for line in lines} == {len(head)}
        for cell in (cell for line in lines for cell in line if not is_number(cell)):
            assert not re.match(r"\s*[=+\-@\t\r\uff1d\uff0b\uff0d\uff20]", cell), cell


def is_number(cell: str) -> bool:
    return bool(re.fullmatch(r"-?[\d.]+(e[+-]\d+)?", cell))


def test_cells_that_are_numbers_stay_numbers() -> None:
    rows = [[-1.5, -3, "-3", None, float("nan"), True, "x", "a,b"]]
    assert csv_text(["-", "b"], rows) == "'-,b\n-1.5,-3,'-3,,,True,x,\"a,b\"\n"


@pytest.mark.parametrize("name", NASTY)
def test_json(name: str) -> None:
    for text in (compare_json(evil_results(NASTY[name])), errors_json(evil_report(NASTY[name]))):
        assert text.isascii()
        refuse_what_does_not_print(text)
        json.dumps(json.loads(text), ensure_ascii=False).encode("utf-8")  # no half of a surrogate pair
        if "\udcff" not in NASTY[name] and "\ud800" not in NASTY[name]:
            assert json.dumps(NASTY[name])[1:-1] in text


def test_json_has_no_number_that_is_none() -> None:
    assert json.loads(json_text({"a": [float("nan"), float("inf")], "b": ("\udcff", 1)})) == {
        "a": [None, None],
        "b": ["\\xff", 1],
    }


@pytest.mark.parametrize("name", NASTY)
def test_markdown(name: str) -> None:
    text = compare_markdown(evil_results(NASTY[name]))
    refuse_what_does_not_print(text)
    assert not re.search(r"[<>`\[\]\\~$@]|!\[|https?:", text)
    lines = text.splitlines()
    assert len(lines) == len(compare_markdown(evil_results("tame")).splitlines())
    assert {line.count("|") for line in lines if "|" in line} == {10, 5}
    own = {line for line in lines if line.startswith(("Verdict by mean KLD: ", "Mean KLD by text:"))}
    assert all(line[:2] in ("", "| ", "- ") for line in lines if line not in own) and len(own) == 2
    assert "*" not in text


@pytest.mark.parametrize("name", NASTY)
def test_markdown_as_it_is_rendered(name: str) -> None:
    """With all that model cards allow: HTML, tables, strikes."""
    renderer = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
    page = renderer.render(compare_markdown(evil_results(NASTY[name])))
    tame = renderer.render(compare_markdown(evil_results("tame")))
    assert Tags(page).found == Tags(tame).found
    assert {tag for tag, *_ in Tags(page).found}.isdisjoint({"a", "img", "script", "code", "em"})
    shown = printable(" ".join(NASTY[name].split()))
    assert html.escape(shown, quote=False).replace('"', "&quot;") in page


@given(st.text(st.characters(exclude_categories=()), max_size=40))
@settings(max_examples=300, deadline=None)
def test_any_name(name: str) -> None:
    for written in (markdown_text(name), csv_text([name], []), json_text({name: name})):
        refuse_what_does_not_print(written)
    assert not re.search(r"[<>|`\\*\[\]]", markdown_text(name))
    ((cell,),) = csv.reader(io.StringIO(csv_text([name], []), newline="")) if name else [("",)]
    assert not cell.lstrip().startswith(FORMULA)


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("Pico-8x7B-v0.1-Q4_K_M", "Pico-8x7B-v0.1-Q4_K_M"),
        ("Q4_0 (round trip)", "Q4_0 (round trip)"),
        ("0.0064 ± 0.0003", "0.0064 ± 0.0003"),
        ("_a_ __b__", "&#95;a&#95; &#95;&#95;b&#95;&#95;"),
        ("a|b & c", "a&#124;b &#38; c"),
        ("a\n  b", "a b"),
        ("http://x www.x", "http&#58;//x www&#46;x"),
        ("C:\\x", "C:&#92;x"),
    ],
)
def test_markdown_of_a_name(text: str, written: str) -> None:
    assert markdown_text(text) == written


@pytest.mark.parametrize("name", DRAWN)
def test_plots(name: str) -> None:
    document = plot_svg(evil_results(NASTY[name]))
    refuse_what_does_not_print(document)
    tame = ElementTree.fromstring(plot_svg(evil_results("tame")))
    assert elements(ElementTree.fromstring(document)) <= elements(tame)
    assert plot_png(evil_results(NASTY[name])).startswith(b"\x89PNG")


def elements(root: ElementTree.Element) -> set[str]:
    return set(each_tag(root))


def each_tag(root: ElementTree.Element) -> Iterator[str]:
    for element in root.iter():
        yield str(element.tag)
        yield from (f"@{name}" for name in element.attrib if name.lower().startswith("on"))
