"""Names beside the points of a plot, each where there is room for it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

from gguf_export.reports.canvas import PALETTE, Axes, text_width
from gguf_export.reports.plots import Point, Series
from quantize.containers.untrusted import printable

__all__ = ["ending", "name_points"]

MAX_NAME = 20  # characters of a name; of a longer one its end is shown

Box = tuple[float, float, float, float]  # left, bottom, right, top, in points

Align = Literal["left", "center", "right"]

PLACES: tuple[tuple[float, float, Align], ...] = (
    (7, 5, "left"),
    (7, -14, "left"),
    (9, -4, "left"),
    (-7, 5, "right"),
    (-7, -14, "right"),
    (-9, -4, "right"),
    (0, 9, "center"),
    (0, -18, "center"),
)
"""Where a name may stand: the offset of its baseline's end or middle from its point, and which of them it is."""


def name_points(axes: Axes, shown: Sequence[Series]) -> None:
    """Write names beside points, each where it is free; a name without room is left out."""
    markers, lines = _marker_boxes(axes, shown), _line_boxes(axes, shown)
    names: list[Box] = []
    figure = axes.get_figure()
    assert figure is not None
    room = (*axes.bbox.min, figure.bbox.xmax, axes.bbox.ymax + 10)
    for point in (point for series in shown if series.named for point in series.points if point.name):
        name = ending(point.name, MAX_NAME)
        width = text_width(name)
        x, y = axes.transData.transform((point.x, point.y))
        for avoided in ([*markers, *names, *lines], [*markers, *names]):  # on a line rather than not at all
            place = _free_place(x, y, width, avoided, room)
            if place is not None:
                box, offset, align = place
                names.append(box)
                _write_name(axes, name, point, offset, align)
                break


def _marker_boxes(axes: Axes, shown: Sequence[Series]) -> list[Box]:
    at = axes.transData.transform
    corners = (at((point.x, point.y)) for series in shown for point in series.points)
    return [(x - 5, y - 5, x + 5, y + 5) for x, y in corners]


def _line_boxes(axes: Axes, shown: Sequence[Series]) -> list[Box]:
    """Small boxes along the lines and the ranges of points."""
    at = axes.transData.transform
    boxes = []
    for series in shown:
        joined = series.points if series.line is None else series.line
        pieces = [((one.x, one.y), (other.x, other.y)) for one, other in pairwise(joined)]
        for point in series.points:
            low, high = point.low or point.y, point.high or point.y
            pieces.append(((point.x, low), (point.x, high)))
        for start, end in pieces:
            (x0, y0), (x1, y1) = at(start), at(end)
            n_step = 1 + int(max(abs(x1 - x0), abs(y1 - y0)) / 4)
            for step in range(n_step + 1):
                x, y = x0 + (x1 - x0) * step / n_step, y0 + (y1 - y0) * step / n_step
                boxes.append((x - 1, y - 1, x + 1, y + 1))
    return boxes


def _free_place(
    x: float, y: float, width: float, taken: Sequence[Box], room: Box
) -> tuple[Box, tuple[float, float], Align] | None:
    """The first place for a name `width` points wide beside (x, y): its box, offset and alignment."""
    for shift, rise, align in PLACES:
        left = x + shift - {"left": 0.0, "center": width / 2, "right": width}[align]
        box = (left - 2, y + rise - 3, left + width + 2, y + rise + 10)
        if _is_free(box, taken, room):
            return box, (shift, rise), align
    return None


def _is_free(box: Box, taken: Sequence[Box], room: Box) -> bool:
    left, bottom, right, top = box
    if left < room[0] or bottom < room[1] or right > room[2] or top > room[3]:
        return False
    return not any(
        left < other[2] and other[0] < right and bottom < other[3] and other[1] < top for other in taken
    )


def _write_name(axes: Axes, name: str, point: Point, offset: tuple[float, float], align: Align) -> None:
    axes.annotate(
        name,
        (point.x, point.y),
        xytext=offset,
        textcoords="offset points",
        ha=align,
        va="baseline",
        color=PALETTE["ink"],
        bbox={"facecolor": PALETTE["paper"], "edgecolor": "none", "alpha": 0.7, "pad": 0.5},
        zorder=3,
    )


def ending(text: str, n_char: int) -> str:
    """The text, or "…" and its end: names of files differ there."""
    text = printable(text)
    return text if len(text) <= n_char else f"…{text[1 - n_char :]}"
