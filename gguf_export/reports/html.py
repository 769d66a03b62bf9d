"""Pieces of the pages that are published beside the files: one self-contained HTML file, no script, no network.

Every piece takes plain text and escapes it: names come from strangers. What is HTML already is of type `Html`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape
from itertools import chain

from gguf_export.reports.style import N_LEVELS, STYLE

__all__ = ["Cell", "Html", "Scale", "Section", "heatmap", "join", "legend", "page", "table", "terms", "tiles"]

MANY_COLUMNS = 12  # from here on the numbers in the cells of a heatmap are only shown on demand

MOST_LABEL = 12.0  # rem, for the names of the rows of a heatmap; longer ones wrap

POLICY = "default-src 'none'; style-src 'unsafe-inline'"
"""Content-Security-Policy of a page: its own style and nothing else, whatever a name may contain."""


class Html(str):
    """Text that is HTML already."""

    __slots__ = ()


def text(value: str) -> str:
    """HTML as it is, anything else escaped."""
    return value if isinstance(value, Html) else escape(value)


def join(pieces: Iterable[str]) -> Html:
    """Pieces one after the other."""
    return Html("\n".join(text(piece) for piece in pieces))


@dataclass(frozen=True)
class Section:
    """A part of a page, under a heading if it has a title."""

    title: str
    body: Html
    lead: str = ""  # a sentence or two below the heading


def page(title: str, lead: str, sections: Sequence[Section], footer: str = "") -> str:
    """A whole document; in print and in the dark it looks as it should."""
    parts = [
        "<section>\n"
        + (f"<h2>{text(section.title)}</h2>\n" if section.title else "")
        + (f"<p>{text(section.lead)}</p>\n" if section.lead else "")
        + f"{section.body}\n</section>"
        for section in sections
    ]
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{escape(POLICY)}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{text(title)}</title>
<style>
{STYLE}</style>
</head>
<body>
<header>
<h1>{text(title)}</h1>
<p>{text(lead)}</p>
</header>
<main>
{chr(10).join(parts)}
</main>
<footer>{text(footer)}</footer>
</body>
</html>
"""


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], caption: str = "") -> Html:
    """A table; columns whose name begins with '>' hold numbers and are aligned to the right, as on the terminal."""
    right = [column.startswith(">") for column in columns]
    kinds = [' class="n"' if one else "" for one in right]
    head = "".join(
        f'<th scope="col"{kind}>{text(column.lstrip(">"))}</th>'
        for kind, column in zip(kinds, columns, strict=True)
    )
    body = "\n".join(
        "<tr>"
        + "".join(
            f'<th scope="row"{kind}>{text(cell)}</th>' if i == 0 else f"<td{kind}>{text(cell)}</td>"
            for i, (kind, cell) in enumerate(zip(kinds, row, strict=True))
        )
        + "</tr>"
        for row in rows
    )
    title = f"<caption>{text(caption)}</caption>" if caption else ""
    return Html(
        f'<div class="scroll" tabindex="0"><table class="list">{title}<thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{body}\n</tbody></table></div>"
    )


def tiles(facts: Iterable[tuple[str, str, str]]) -> Html:
    """The figures to see first: (label, figure, remark) each."""
    return Html(
        '<dl class="tiles">'
        + "".join(
            f"<div><dt>{text(label)}</dt><dd><b>{text(figure)}</b> {text(remark)}</dd></div>"
            for label, figure, remark in facts
        )
        + "</dl>"
    )


def terms(facts: Iterable[tuple[str, str]]) -> Html:
    """Words and what they mean."""
    return Html(
        '<dl class="terms">'
        + "".join(f"<dt>{text(name)}</dt><dd>{text(meaning)}</dd>" for name, meaning in facts)
        + "</dl>"
    )


@dataclass(frozen=True)
class Scale:
    """Numbers -> levels of colour, 0 to N_LEVELS - 1, in even steps from `low` to `high`, or in even ratios."""

    low: float
    high: float
    log: bool = False

    @staticmethod
    def over(values: Iterable[float | None], *, log: bool = False, low: float | None = None) -> Scale:
        """The scale that just holds the values; a logarithmic one leaves zeros out."""
        known = [value for value in values if value is not None and (value > 0 or not log)]
        if not known:
            return Scale(1.0, 1.0, log)
        return Scale(min(known) if low is None else low, max(known), log)

    def level(self, value: float) -> int:
        """The level of a value; values outside the scale take its end."""
        if self.high <= self.low or value <= self.low:
            return 0
        if self.log:
            part = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            part = (value - self.low) / (self.high - self.low)
        return min(N_LEVELS - 1, int(part * N_LEVELS))


@dataclass(frozen=True)
class Cell:
    """One place of a heatmap: its number (None: there is none), how it is written, and what the pointer is told."""

    value: float | None
    shown: str
    title: str
    warn: bool = False  # nothing is there, and that is a warning


def heatmap(
    caption: str,
    row_label: str,
    rows: Sequence[str],
    column_label: str,
    columns: Sequence[str],
    cells: Sequence[Sequence[Cell | None]],
    scale: Scale,
    ramp: str,
) -> Html:
    """A coloured table, so that it is read aloud, copied and scaled like one; `ramp` names the colours in the style."""
    every = 1 if len(columns) <= MANY_COLUMNS else max(4, 4 * round(len(columns) / 32))
    head = "".join(
        f'<th scope="col">{text(label)}</th>'
        if i % every == 0
        else f'<th scope="col"><span class="unseen">{text(label)}</span></th>'
        for i, label in enumerate(columns)
    )
    lines = [
        f'<tr><th scope="row">{text(label)}</th>' + "".join(_cell(cell, scale) for cell in row) + "</tr>"
        for label, row in zip(rows, cells, strict=True)
    ]
    many = " many" if len(columns) > MANY_COLUMNS else ""
    room = min(MOST_LABEL, max([4.5, *(0.9 + 0.48 * len(label) for label in rows)]))
    sizes = f"--columns:{len(columns)};--label:min({room:.1f}rem,34vw)"
    tall = " tall" if len(rows) > 16 else ""
    corner = f"{text(row_label)}&nbsp;↓ {text(column_label)}&nbsp;→"
    return Html(
        f'<div class="scroll" tabindex="0"><table class="heat {ramp}{many}{tall}" style="{sizes}">'
        f"<caption>{text(caption)}</caption>"
        f'<thead><tr><td class="corner">{corner}</td>{head}</tr></thead>\n<tbody>\n'
        + "\n".join(lines)
        + "\n</tbody></table></div>"
    )


def _cell(cell: Cell | None, scale: Scale) -> str:
    if cell is None:
        return "<td></td>"
    kind = "warn" if cell.warn else "none" if cell.value is None else f"c{scale.level(cell.value)}"
    return f'<td class="{kind}" title="{escape(cell.title)}">{text(cell.shown)}</td>'


def legend(label: str, scale: Scale, show: Callable[[float], str], ramp: str, *warnings: str) -> Html:
    """The colours of a scale from its low to its high end, and what the hatched cells mean."""
    levels = "".join(f'<i class="c{level}"></i>' for level in range(N_LEVELS))
    hatched = "".join(f'<span><i class="warn"></i> {text(warning)}</span>' for warning in warnings)
    return Html(
        f'<p class="legend {ramp}"><span>{text(label)}</span> <span>{text(show(scale.low))} '
        f'<span class="ramp" aria-hidden="true">{levels}</span> {text(show(scale.high))}</span> {hatched}</p>'
    )


def panels(pieces: Sequence[Html], n_columns: int = 0, key: str = "") -> Html:
    """Heatmaps or plots side by side where there is room; many columns get a switch that shows their numbers."""
    switch = (
        f'<input type="checkbox" class="switch" id="{escape(key)}"><label for="{escape(key)}">show the numbers</label>'
        if n_columns > MANY_COLUMNS
        else ""
    )
    wide = " wide" if n_columns > MANY_COLUMNS else ""
    return join(chain([Html(f'{switch}<div class="panels{wide}">')], pieces, [Html("</div>")]))
