"""Names beside the points of a plot, each where there is room for it; one that stands apart has a line to its point."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
import numpy.typing as npt

from gguf_export.reports.canvas import PALETTE, Axes, Line2D, text_width
from gguf_export.reports.plots import Point, Series
from quantize.containers.untrusted import printable

__all__ = ["ending", "name_points"]

MAX_NAME = 20  # characters of a name; of a longer one its end is shown

Box = tuple[float, float, float, float]  # left, bottom, right, top, in points

Boxes = npt.NDArray[np.float64]  # [n, 4], each a Box

Align = Literal["left", "center", "right"]

BESIDE: tuple[tuple[float, float, Align], ...] = (
    (7, 5, "left"),
    (7, -14, "left"),
    (9, -4, "left"),
    (-7, 5, "right"),
    (-7, -14, "right"),
    (-9, -4, "right"),
    (0, 9, "center"),
    (0, -18, "center"),
)
"""Where a name may stand beside its point, the best place first: the offset of its baseline's end or middle from the
point, and which of them it is."""

RADII = (24.0, 34.0, 46.0, 60.0, 76.0, 94.0, 114.0)  # points from a name that stands apart to its point
N_ANGLE = 24
ON_A_LINE = 30.0  # cost, in points of distance, of a name over a line of the plot
CROSSING = 300.0  # likewise of a line to a point that meets another one, or the marker of another point
ROUNDS = 6  # how often the names are placed anew, those first for which there was no room


@dataclass(frozen=True)
class Place:
    """Where a name stands: its box, the end of its baseline, and the line to its point (None beside the point)."""

    box: Box
    x: float
    y: float
    align: Align
    leader: tuple[float, float, float, float] | None
    cost: float


def name_points(axes: Axes, shown: Sequence[Series]) -> None:
    """Write names beside points, or apart with a line to the point; a name without room is left out."""
    figure = axes.get_figure()
    assert figure is not None
    room: Box = (axes.bbox.xmin, axes.bbox.ymin, figure.bbox.xmax, axes.bbox.ymax + 10)
    points = [point for series in shown if series.named for point in series.points if point.name]
    at = [axes.transData.transform((point.x, point.y)) for point in points]
    names = [ending(point.name, MAX_NAME) for point in points]
    room_for = _Room(room, _marker_boxes(axes, shown), _line_boxes(axes, shown))
    sizes = [(x, y, text_width(name)) for (x, y), name in zip(at, names, strict=True)]
    for index, place in room_for.places(sizes).items():
        _write_name(axes, names[index], place)


class _Room:
    """The area of a plot: what names must not touch, and what they should not."""

    def __init__(self, room: Box, markers: Boxes, lines: Boxes) -> None:
        self.room, self.markers, self.lines = room, markers, lines

    def places(self, names: Sequence[tuple[float, float, float]]) -> dict[int, Place]:
        """A place for each name for which there is room, by its index.

        Args:
            names: (x, y) of its point and its width, in points, each.
        """
        order = list(range(len(names)))
        best: dict[int, Place] = {}
        for _ in range(ROUNDS):
            found = self._in_order(names, order)
            if len(found) > len(best) or not best:
                best = found
            failed = [index for index in order if index not in found]
            if not failed:
                break
            order = failed + [index for index in order if index in found]
        return best

    def _in_order(
        self, names: Sequence[tuple[float, float, float]], order: Sequence[int]
    ) -> dict[int, Place]:
        found: dict[int, Place] = {}
        for index in order:
            x, y, width = names[index]
            place = self._best(x, y, width, list(found.values()))
            if place is not None:
                found[index] = place
        return found

    def _best(self, x: float, y: float, width: float, taken: Sequence[Place]) -> Place | None:
        """The cheapest place for a name `width` points wide whose point is at (x, y)."""
        boxes = np.array([place.box for place in taken]).reshape(-1, 4)
        leaders = np.array([place.leader for place in taken if place.leader is not None]).reshape(-1, 4)
        solid = np.concatenate([self.markers, boxes, _along(leaders)])
        best: Place | None = None
        for place in _candidates(x, y, width):
            if best is not None and place.cost >= best.cost:
                continue
            if not self._holds(place.box) or _touches(place.box, solid):
                continue
            cost = place.cost + (ON_A_LINE if _touches(place.box, self.lines) else 0.0)
            if place.leader is not None:
                cost += self._crossings(place.leader, x, y, boxes, leaders)
            if cost < (math.inf if best is None else best.cost):
                best = Place(place.box, place.x, place.y, place.align, place.leader, cost)
        return best

    def _holds(self, box: Box) -> bool:
        left, bottom, right, top = self.room
        return left <= box[0] and bottom <= box[1] and box[2] <= right and box[3] <= top

    def _crossings(
        self, leader: tuple[float, float, float, float], x: float, y: float, boxes: Boxes, leaders: Boxes
    ) -> float:
        """The cost of what the line from a name to its point at (x, y) meets; infinite where that is another name."""
        pieces = _along(np.array([leader]))
        if any(_touches(tuple(piece), boxes) for piece in pieces):
            return math.inf
        own = (self.markers[:, 0] <= x) & (x <= self.markers[:, 2])
        own &= (self.markers[:, 1] <= y) & (y <= self.markers[:, 3])
        others = np.concatenate([self.markers[~own], _along(leaders)])
        return CROSSING if any(_touches(tuple(piece), others) for piece in pieces) else 0.0


def _candidates(x: float, y: float, width: float) -> Iterator[Place]:
    """Places for a name, beside its point at (x, y) and around it."""
    for rank, (shift, rise, align) in enumerate(BESIDE):
        yield _place(x + shift, y + rise, width, align, None, rank)
    for radius in RADII:
        for step in range(N_ANGLE):
            angle = math.radians(45) + 2 * math.pi * step / N_ANGLE
            across, up = math.cos(angle), math.sin(angle)
            align = "left" if across > 0.3 else "right" if across < -0.3 else "center"
            end_x, end_y = x + radius * across, y + radius * up
            leader = (x + 5 * across, y + 5 * up, end_x - 2 * across, end_y - 2 * up)
            baseline = end_y - 4 + 5 * up
            yield _place(end_x + 2 * across, baseline, width, align, leader, radius)


def _place(
    x: float,
    y: float,
    width: float,
    align: Align,
    leader: tuple[float, float, float, float] | None,
    cost: float,
) -> Place:
    left = x - {"left": 0.0, "center": width / 2, "right": width}[align]
    return Place((left - 2, y - 3, left + width + 2, y + 10), x, y, align, leader, cost)


def _touches(box: Box | tuple[float, ...], others: Boxes) -> bool:
    left, bottom, right, top = box
    return bool(
        np.any(
            (left < others[:, 2]) & (others[:, 0] < right) & (bottom < others[:, 3]) & (others[:, 1] < top)
        )
    )


def _along(lines: Boxes) -> Boxes:
    """Small boxes along lines, each (x0, y0, x1, y1)."""
    boxes = []
    for x0, y0, x1, y1 in lines:
        n_step = 1 + int(max(abs(x1 - x0), abs(y1 - y0)) / 4)
        share = np.linspace(0, 1, n_step + 1)
        x, y = x0 + (x1 - x0) * share, y0 + (y1 - y0) * share
        boxes.append(np.stack([x - 1, y - 1, x + 1, y + 1], axis=1))
    return np.concatenate(boxes) if boxes else np.empty((0, 4))


def _marker_boxes(axes: Axes, shown: Sequence[Series]) -> Boxes:
    at = axes.transData.transform
    corners = (at((point.x, point.y)) for series in shown for point in series.points)
    return np.array([(x - 5, y - 5, x + 5, y + 5) for x, y in corners]).reshape(-1, 4)


def _line_boxes(axes: Axes, shown: Sequence[Series]) -> Boxes:
    """Small boxes along the lines and the ranges of points."""
    at = axes.transData.transform
    lines = []
    for series in shown:
        joined = series.points if series.line is None else series.line
        pieces = [((one.x, one.y), (other.x, other.y)) for one, other in pairwise(joined)]
        for point in series.points:
            pieces.append(((point.x, _end(point.low, point)), (point.x, _end(point.high, point))))
        lines += [(*at(start), *at(end)) for start, end in pieces]
    return _along(np.array(lines).reshape(-1, 4))


def _end(end: float | None, point: Point) -> float:
    return point.y if end is None else end


def _write_name(axes: Axes, name: str, place: Place) -> None:
    figure = axes.get_figure()
    assert figure is not None
    width, height = figure.bbox.width, figure.bbox.height
    if place.leader is not None:
        x0, y0, x1, y1 = place.leader
        ends = [x0 / width, x1 / width], [y0 / height, y1 / height]
        figure.add_artist(Line2D(*ends, color=PALETTE["soft"], linewidth=0.8))
    figure.text(
        place.x / width,
        place.y / height,
        name,
        ha=place.align,
        va="baseline",
        color=PALETTE["ink"],
        bbox={"facecolor": PALETTE["paper"], "edgecolor": "none", "alpha": 0.7, "pad": 0.5},
        zorder=3,
    )


def ending(text: str, n_char: int) -> str:
    """The text, or "…" and its end: names of files differ there."""
    text = printable(text)
    return text if len(text) <= n_char else f"…{text[1 - n_char :]}"
