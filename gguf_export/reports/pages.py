"""The parts of a page as plain data; `rendering` makes HTML of them, each by the template that it names.

Every text is plain text, and much of it comes from strangers (names of models, files and texts): the templates escape
it. Nothing here is HTML.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

__all__ = ["Details", "Page", "PagePart", "Panels", "Section", "Table", "TableText", "Terms", "Tiles"]

TableText = tuple[tuple[str, ...], list[tuple[str, ...]]]
"""Headings and rows of a table, for a terminal or a page; a heading that begins with '>' is one of numbers."""

SWITCH_FROM = 12
"""Heat maps with more columns than this show the numbers in their cells on demand only."""


class PagePart(Protocol):
    """A piece of a page: data, and the name of the template that shows it."""

    template: ClassVar[str]


@dataclass(frozen=True)
class Table:
    """A table; columns whose heading begins with '>' hold numbers and are aligned to the right.

    `is_tight`: its words are few, and never wrap.
    """

    template: ClassVar[str] = "table.html.jinja"
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""
    is_tight: bool = False


@dataclass(frozen=True)
class Tiles:
    """The figures to see first: (label, figure, remark) each."""

    template: ClassVar[str] = "tiles.html.jinja"
    facts: Sequence[tuple[str, str, str]]


@dataclass(frozen=True)
class Terms:
    """Words and their meanings: (word, meaning) each."""

    template: ClassVar[str] = "terms.html.jinja"
    facts: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Panels:
    """Heat maps or plots side by side where there is room.

    `n_columns` is the number of columns of its heat maps. Where they are many, a switch shows the numbers in their
    cells; its `key` is unique on the page.
    """

    template: ClassVar[str] = "panels.html.jinja"
    parts: Sequence[PagePart]
    n_columns: int = 0
    key: str = ""

    @property
    def has_switch(self) -> bool:
        """Whether the numbers are shown on demand only."""
        return self.n_columns > SWITCH_FROM


@dataclass(frozen=True)
class Details:
    """Parts behind a line that opens them, for what few readers want."""

    template: ClassVar[str] = "details.html.jinja"
    title: str
    parts: Sequence[PagePart]
    is_open: bool = False


@dataclass(frozen=True)
class Section:
    """Parts under a heading (none where `title` is empty), which a sentence or two, `lead`, may introduce."""

    title: str
    parts: Sequence[PagePart]
    lead: str = ""


@dataclass(frozen=True)
class Page:
    """A whole document."""

    title: str
    lead: str
    sections: Sequence[Section]
    footer: str = ""
