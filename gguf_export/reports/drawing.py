"""Pictures of plots, drawn by matplotlib: SVG for a page, SVG and PNG files. Equal plots give equal bytes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from markupsafe import Markup

from gguf_export.reports.canvas import (
    PALETTE,
    SERIES_COLOURS,
    Axes,
    Figure,
    FixedFormatter,
    FixedLocator,
    Line2D,
    NullLocator,
    drawing,
    save_png,
    save_svg,
    text_width,
)
from gguf_export.reports.inline_svg import inline_svg
from gguf_export.reports.plots import Plot, Series
from gguf_export.reports.point_names import ending, name_points
from gguf_export.reports.spans import Span
from quantize.containers.untrusted import printable

__all__ = ["png_file", "svg_file", "svg_for_page", "wide_svg_for_page"]

MARKERS = ("o", "s", "^", "D", "v", "P", "X")
"""One shape for each series, since colours alone do not tell all readers apart; seven of them beside six colours, so
that it takes 42 series for two to look alike."""

PAGE_SIZE = (440.0, 280.0)
"""Points; a page scales the drawing to its own width, and from this width its text is legible on a phone."""

WIDE_SIZE = (900.0, 430.0)
"""The same for a large screen."""

FILE_SIZE = (720.0, 440.0)
FILE_DPI = 160

CROWDED_FROM = 12  # names beside points, from which on a plot on a page is higher

MARKER_SIZE = 7.0
CROWDED_LINE = 24  # points of a series, beyond which its markers are small

TITLE_SIZE = 14.0
NOTE_SIZE, NOTE_HEIGHT = 10.0, 15.0
LINE_HEIGHT = 18.0
MAX_KEY = 40  # characters of the name of a series in the legend


def svg_for_page(plot: Plot) -> Markup:
    """Draw a plot as an SVG element for HTML: its colours and fonts are the page's, and hovering tells each point."""
    width, height = PAGE_SIZE
    return _svg_element(plot, width, height * (1.0 + 0.5 * _crowd(plot)), "")


def wide_svg_for_page(plot: Plot) -> Markup:
    """The same for the whole width of a page on a large screen."""
    width, height = WIDE_SIZE
    return _svg_element(plot, width, height * (1.0 + 0.15 * _crowd(plot)), "wide ")


def _svg_element(plot: Plot, width: float, height: float, salt: str) -> Markup:
    with drawing(salt + printable(plot.title)):
        document = save_svg(_draw(plot, width, height))
    return inline_svg(document, f"{plot.title}: {plot.y.label} by {plot.x.label}", dict(_hover_texts(plot)))


def _crowd(plot: Plot) -> float:
    """How crowded the names beside the points are: 0 where they are few, 1 at two dozen."""
    n_named = sum(bool(point.name) for series in plot.series if series.named for point in series.points)
    return min(1.0, max(0.0, (n_named - CROWDED_FROM / 2) / CROWDED_FROM))


def svg_file(plot: Plot) -> str:
    """Draw a plot as an SVG document with its title, on opaque ground."""
    with drawing("file"):
        return save_svg(_draw(plot, *FILE_SIZE, is_titled=True))


def png_file(plot: Plot) -> bytes:
    """Draw a plot as a PNG image with its title, on opaque ground; 1600 pixels wide."""
    with drawing("file"):
        return save_png(_draw(plot, *FILE_SIZE, is_titled=True), FILE_DPI)


def _hover_texts(plot: Plot) -> Iterator[tuple[str, list[str]]]:
    """The id of each group of markers, and a text for each of them in their order."""
    for index, series in enumerate(plot.drawable()):
        yield (
            _markers_id(index),
            [
                f"{', '.join(filter(None, (point.name, series.name)))}: "
                f"{plot.x.show(point.x)}, {plot.y.show(point.y)}"
                for point in series.points
            ],
        )


# -- the drawing


def _draw(plot: Plot, width: float, height: float, *, is_titled: bool = False) -> Figure:
    """Draw a plot `width` points wide; it gets higher than `height` by the lines of its legend."""
    shown = plot.drawable()
    keys = _key_rows(shown, width) if len(shown) > 1 else []
    notes = _wrapped(printable(plot.note), NOTE_SIZE, width - 16) if is_titled else []
    top = 30.0 + LINE_HEIGHT * len(keys) + (26.0 if is_titled else 0.0)
    height += LINE_HEIGHT * len(keys) + NOTE_HEIGHT * len(notes)
    figure = Figure(figsize=(width / 72, height / 72))
    if is_titled:
        title = _fitting(printable(plot.title), TITLE_SIZE, width - 16)
        _write(figure, 8, height - 22, title, fontsize=TITLE_SIZE, color=PALETTE["ink"], fontweight="bold")
    _draw_keys(figure, keys, height - (38 if is_titled else 12))
    if plot.is_empty:
        _write(figure, width / 2, height / 2, "no point can be drawn", ha="center")
        return figure
    across = Span.over(plot.x, (point.x for series in shown for point in series.points))
    up = Span.over(plot.y, _heights(shown))
    tick_width = max((text_width(label) for label in up.labels), default=0.0)
    below = NOTE_HEIGHT * len(notes)
    left, right, bottom = min(max(40.0, tick_width + 12), width / 3), 26.0, 44.0 + below
    axes = figure.add_axes(
        (left / width, bottom / height, (width - left - right) / width, (height - top - bottom) / height)
    )
    _set_axes(axes, across, up)
    _write(figure, (left + width - right) / 2, 8 + below, printable(plot.x.label), ha="center")
    for line, note in enumerate(reversed(notes)):
        _write(figure, 8, 6 + NOTE_HEIGHT * line, note, fontsize=NOTE_SIZE)
    _write(figure, 0 if not is_titled else 8, height - top + 14, printable(plot.y.label))
    for index, series in enumerate(shown):
        _draw_series(axes, index, series)
    name_points(axes, shown)
    for artist in figure.findobj():
        artist.set_clip_on(False)  # nothing lies outside, and a clip path would be a reference
    return figure


def _write(figure: Figure, x: float, y: float, text: str, **style: Any) -> None:
    """Write a line of text at (x, y) points from the lower left corner."""
    width, height = figure.get_size_inches() * 72
    figure.text(x / width, y / height, text, **style)


def _heights(shown: Sequence[Series]) -> Iterator[float]:
    for series in shown:
        for point in series.points:
            yield from (value for value in (point.y, point.low, point.high) if value is not None)


def _set_axes(axes: Axes, across: Span, up: Span) -> None:
    """Scales, ticks and grid."""
    axes.set_xscale("log" if across.axis.log else "linear")
    axes.set_yscale("log" if up.axis.log else "linear")
    axes.set_xlim(across.low, across.high)
    axes.set_ylim(up.low, up.high)
    for axis, span in ((axes.xaxis, across), (axes.yaxis, up)):
        axis.set_major_locator(FixedLocator(span.ticks))
        axis.set_major_formatter(FixedFormatter(span.labels))
        axis.set_minor_locator(NullLocator())
    axes.tick_params(length=0, pad=6)
    axes.grid(linewidth=1)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _look(index: int) -> tuple[str, str]:
    """The colour and the marker of a series."""
    return SERIES_COLOURS[index % len(SERIES_COLOURS)], MARKERS[index % len(MARKERS)]


def _draw_series(axes: Axes, index: int, series: Series) -> None:
    colour, marker = _look(index)
    joined = series.points if series.line is None else series.line
    if len(joined) > 1:
        axes.plot([point.x for point in joined], [point.y for point in joined], color=colour, linewidth=1.6)
    ranges = [point for point in series.points if point.low is not None or point.high is not None]
    if ranges:
        below = [point.y - (point.y if point.low is None else point.low) for point in ranges]
        above = [(point.y if point.high is None else point.high) - point.y for point in ranges]
        x, y = [point.x for point in ranges], [point.y for point in ranges]
        axes.errorbar(x, y, yerr=[below, above], fmt="none", ecolor=colour, elinewidth=1.6, capsize=3.5)
    (markers,) = axes.plot(
        [point.x for point in series.points],
        [point.y for point in series.points],
        linestyle="none",
        marker=marker,
        markersize=MARKER_SIZE if len(series.points) <= CROWDED_LINE else MARKER_SIZE / 2,
        color=colour,
        markeredgewidth=0,
        zorder=4,
    )
    markers.set_gid(_markers_id(index))


def _markers_id(index: int) -> str:
    return f"markers{index}"


# -- texts in the drawing


def _fitting(text: str, size: float, width: float) -> str:
    """The text, or its beginning and "…" where it is wider than `width` points."""
    if text_width(text, size) <= width:
        return text
    while text and text_width(f"{text}…", size) > width:
        text = text[:-1]
    return f"{text}…"


def _wrapped(text: str, size: float, width: float) -> list[str]:
    """The text in lines of at most `width` points; a longer word is cut."""
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and text_width(longer, size) <= width:
            lines[-1] = longer
        else:
            lines.append(_fitting(word, size, width))
    return lines


def _key_rows(shown: Sequence[Series], width: float) -> list[list[tuple[int, str, float]]]:
    """The legend: in each row the (index, name, left end in points) of its series."""
    rows: list[list[tuple[int, str, float]]] = [[]]
    left = 8.0
    for index, series in enumerate(shown):
        name = ending(series.name, MAX_KEY)
        needed = 18 + text_width(name) + 16
        if rows[-1] and left + needed > width:
            rows.append([])
            left = 8.0
        rows[-1].append((index, name, left))
        left += needed
    return rows


def _draw_keys(figure: Figure, rows: Sequence[Sequence[tuple[int, str, float]]], top: float) -> None:
    """Draw the legend, its first row `top` points above the lower edge."""
    for row, keys in enumerate(rows):
        y = top - row * LINE_HEIGHT
        for index, name, left in keys:
            colour, marker = _look(index)
            _draw_marker(figure, left + 4, y, colour, marker)
            _write(figure, left + 14, y - 4, name)


def _draw_marker(figure: Figure, x: float, y: float, colour: str, marker: str) -> None:
    width, height = figure.get_size_inches() * 72
    line = Line2D(
        [x / width],
        [y / height],
        linestyle="none",
        marker=marker,
        markersize=MARKER_SIZE,
        color=colour,
        markeredgewidth=0,
    )
    figure.add_artist(line)
