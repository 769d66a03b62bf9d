"""Pages from their parts: one self-contained HTML file, no script, no network.

The templates escape every text that they are given. A name that a terminal or a reader could be misled by (control
characters, a change of the direction of writing) is shown escaped, as on the terminal.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from gguf_export.reports.drawing import svg_for_page, wide_svg_for_page
from gguf_export.reports.pages import Details, Page, Section, Terms
from gguf_export.reports.terms import TERMS
from quantize.containers.untrusted import printable

__all__ = ["render"]


def render(page: Page) -> str:
    """Make the whole document; equal pages give equal text."""
    return (
        _environment()
        .get_template("page.html.jinja")
        .render(page=page, terms=frozenset(_terms(page.sections)))
    )


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("gguf_export.reports"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_printable,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"svg": svg_for_page, "wide_svg": wide_svg_for_page, "anchor": _anchor}
    return environment


def _terms(parts: Iterable[Any]) -> Iterator[str]:
    """The words that a page explains, to which its tables link."""
    for part in parts:
        if isinstance(part, Terms):
            yield from (word for word, _ in part.facts if word in TERMS)
        elif isinstance(part, Section | Details):
            yield from _terms(part.parts)


def _anchor(word: str) -> str:
    """The name of a word's place on the page."""
    return "term-" + "-".join(word.split())


def _printable(value: Any) -> Any:
    """Escape what does not print in a plain text; markup, which a template or `drawing` made, stays as it is."""
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value
