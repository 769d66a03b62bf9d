"""Lines and points as inline SVG, for the pages that `html` frames."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from html import escape

from gguf_export.reports.figures import plain
from gguf_export.reports.html import Html, text
from gguf_export.reports.style import SERIES

__all__ = ["Axis", "Point", "Series", "plot"]

WIDTH, HEIGHT = 440, 280  # of the drawing; it is scaled to the page, and its text is legible on a phone
LEFT, RIGHT, TOP, BOTTOM = 58, 26, 30, 42  # margins around the axes
CHAR_WIDTH, MOST_CHARS = 8.2, 20  # of a name beside a point: as wide as most, and its end if it is longer
MARKERS = (
    "M-4,0a4,4 0 1 0 8,0a4,4 0 1 0 -8,0Z",  # circle
    "M-4,-4H4V4H-4Z",  # square
    "M0,-5L5,4H-5Z",  # triangle
    "M0,-5.5L5.5,0L0,5.5L-5.5,0Z",  # diamond
    "M0,5L5,-4H-5Z",  # triangle upside down
    "M-4.5,-1.5H-1.5V-4.5H1.5V-1.5H4.5V1.5H1.5V4.5H-1.5V1.5H-4.5Z",  # cross
)
"""One shape for each series, since colours alone do not tell all readers apart."""


@dataclass(frozen=True)
class Point:
    """A point, with its range (low, high) and its name, which hovering tells, where it has them."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None
    name: str = ""


@dataclass(frozen=True)
class Series:
    """Points that belong together; drawn as a line, or as markers, or as both; `named`: names stand beside them."""

    name: str
    points: Sequence[Point]
    line: bool = True
    markers: bool = True
    named: bool = True


@dataclass(frozen=True)
class Axis:
    """What an axis measures, and how its numbers are written."""

    label: str
    log: bool = False
    show: Callable[[float], str] = field(default=plain)

    def over(self, values: Iterable[float]) -> Drawn:
        """The axis that holds some values, with a little room on either side."""
        known = list(values)
        low, high = min(known), max(known)
        if self.log:
            room = max(1.1, (high / low) ** 0.06)
            low, high = low / room, high * room
            return Drawn(self, low, high, _log_ticks(low, high))
        room = (high - low) * 0.05 or abs(high) * 0.1 or 1.0
        low, high = low - room, high + room
        return Drawn(self, low, high, _linear_ticks(low, high))


@dataclass(frozen=True)
class Drawn:
    """An axis from `low` to `high`, with round numbers between."""

    axis: Axis
    low: float
    high: float
    ticks: Sequence[float]

    def part(self, value: float) -> float:
        """Where a value lies: 0 at the low end, 1 at the high one."""
        if self.axis.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)


def _linear_ticks(low: float, high: float) -> list[float]:
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * k for k in (1, 2, 5, 10) if power * k >= rough * 0.999)
    return [round(i * step, 12) for i in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten; where fewer than three are in sight, numbers between."""
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks: list[float] = []
    for steps in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 6, 7, 8, 9)):
        ticks = [tick for e in exponents for step in steps if low <= (tick := step * 10.0**e) <= high]
        if len(ticks) >= 3:
            break
    return ticks


def plot(title: str, series: Sequence[Series], x: Axis, y: Axis) -> Html:
    """A figure; on a logarithmic axis points that are not positive are left out. Empty where there is no point.

    Each point is also told as text on hovering, and each range as a vertical bar; names stand beside points where they
    fit. The numbers should stand in a table nearby.
    """
    kept = [_drawable(one, x, y) for one in series]
    points = [point for one in kept for point in one.points]
    if not points:
        return Html("")
    heights = [value for point in points for value in (point.y, point.low, point.high) if value is not None]
    across, up = x.over(point.x for point in points), y.over(heights)

    def at_x(value: float) -> float:
        return LEFT + across.part(value) * (WIDTH - LEFT - RIGHT)

    def at_y(value: float) -> float:
        return HEIGHT - BOTTOM - up.part(value) * (HEIGHT - TOP - BOTTOM)

    parts = [
        f'<path class="grid" fill="none" d="M{LEFT},{TOP}V{HEIGHT - BOTTOM}H{WIDTH - RIGHT}"/>',
        *(_x_tick(at_x(tick), x.show(tick)) for tick in across.ticks),
        *(_y_tick(at_y(tick), y.show(tick)) for tick in up.ticks),
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2:.0f}" y="{HEIGHT - 6}" text-anchor="middle">{text(x.label)}</text>',
        f'<text x="0" y="12">{text(y.label)}</text>',
    ]
    labels = Labels([(at_x(point.x), at_y(point.y)) for point in points])
    for index, one in enumerate(kept):
        parts.append(f'<g class="s{index % len(SERIES)}">')
        if one.line and len(one.points) > 1:
            way = "L".join(f"{at_x(point.x):.1f},{at_y(point.y):.1f}" for point in one.points)
            parts.append(f'<path d="M{way}"/>')
        for point in one.points:
            parts += _mark(point, one, index, x, y, at_x, at_y)
        if one.named:
            parts += [
                labels.place(at_x(point.x), at_y(point.y), point.name) for point in one.points if point.name
            ]
        parts.append("</g>")
    keys = _keys(kept) if len(kept) > 1 else ""
    return Html(
        f'<figure><figcaption>{text(title)}</figcaption>{keys}<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escape(f"{title}: {y.label} by {x.label}")}">\n'
        + "\n".join(parts)
        + "\n</svg></figure>"
    )


def _drawable(series: Series, x: Axis, y: Axis) -> Series:
    def fits(point: Point) -> bool:
        finite = math.isfinite(point.x) and math.isfinite(point.y)
        return finite and (point.x > 0 or not x.log) and (point.y > 0 or not y.log)

    def positive(value: float | None) -> float | None:
        return None if value is None or (y.log and value <= 0) else value

    points = [
        Point(point.x, point.y, positive(point.low), positive(point.high), point.name)
        for point in series.points
        if fits(point)
    ]
    return replace(series, points=points)


def _mark(
    point: Point,
    series: Series,
    index: int,
    x: Axis,
    y: Axis,
    at_x: Callable[[float], float],
    at_y: Callable[[float], float],
) -> list[str]:
    """The range and marker of a point, and what hovering tells."""
    px, py = at_x(point.x), at_y(point.y)
    parts = []
    if point.low is not None or point.high is not None:
        low = at_y(point.y if point.low is None else point.low)
        high = at_y(point.y if point.high is None else point.high)
        parts.append(
            f'<path d="M{px:.1f},{low:.1f}V{high:.1f}M{px - 4:.1f},{low:.1f}h8M{px - 4:.1f},{high:.1f}h8"/>'
        )
    named = ", ".join(filter(None, (point.name, series.name)))
    told = f"{named}: {x.show(point.x)}, {y.show(point.y)}"
    if series.markers:
        shape = MARKERS[index % len(MARKERS)]
        parts.append(
            f'<g transform="translate({px:.1f} {py:.1f})"><title>{text(told)}</title><path d="{shape}" '
            'style="fill:inherit;stroke:none"/></g>'
        )
    return parts


Box = tuple[float, float, float, float]  # left, top, right, bottom


class Labels:
    """Names beside points: each where it is free, or shifted, or left out; hovering tells it all the same."""

    def __init__(self, points: Sequence[tuple[float, float]]) -> None:
        self._taken: list[Box] = [(x - 5, y - 5, x + 5, y + 5) for x, y in points]

    def place(self, x: float, y: float, name: str) -> str:
        """A name beside the point at x and y; empty where there is no room."""
        shown = name if len(name) <= MOST_CHARS else f"…{name[1 - MOST_CHARS :]}"
        width = CHAR_WIDTH * len(shown)
        for right in (True, False):
            for shift in (-9, 17, 4):
                left = x + 9 if right else x - 9 - width
                box = (left, y + shift - 11, left + width, y + shift + 4)
                if self._is_free(box):
                    self._taken.append(box)
                    at, anchor = (left, "start") if right else (left + width, "end")
                    where = f'x="{at:.1f}" y="{y + shift:.1f}" text-anchor="{anchor}"'
                    return f'<text class="name" {where}>{text(shown)}</text>'
        return ""

    def _is_free(self, box: Box) -> bool:
        left, top, right, bottom = box
        if left < LEFT or right > WIDTH or top < TOP - 12 or bottom > HEIGHT - BOTTOM:
            return False
        return not any(
            left < other[2] + 3 and other[0] < right + 3 and top < other[3] and other[1] < bottom
            for other in self._taken
        )


def _x_tick(at: float, shown: str) -> str:
    return (
        f'<line class="grid" x1="{at:.1f}" x2="{at:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>'
        f'<text x="{at:.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{text(shown)}</text>'
    )


def _y_tick(at: float, shown: str) -> str:
    return (
        f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>'
        f'<text x="{LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{text(shown)}</text>'
    )


def _keys(series: Sequence[Series]) -> str:
    keys = "".join(
        f'<li><svg viewBox="-10 -7 20 14" aria-hidden="true"><g class="s{index % len(SERIES)}">'
        + ('<path d="M-10,0H10"/>' if one.line else "")
        + (
            f'<path d="{MARKERS[index % len(MARKERS)]}" style="fill:inherit;stroke:none"/>'
            if one.markers
            else ""
        )
        + f"</g></svg> {text(one.name)}</li>"
        for index, one in enumerate(series)
    )
    return f'<ul class="keys">{keys}</ul>'
