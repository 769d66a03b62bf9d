"""Plots as plain data; `drawing` makes pictures of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

from gguf_export.reports.figures import plain

__all__ = ["Axis", "Plot", "Point", "Series"]


@dataclass(frozen=True)
class Point:
    """A point, with its range from `low` to `high` and its name where it has them."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None
    name: str = ""


@dataclass(frozen=True)
class Series:
    """Points of one colour and marker.

    `line` are the points that a line joins (None: all of them). `named`: names stand beside points where there is
    room; hovering tells every name.
    """

    name: str
    points: Sequence[Point]
    line: Sequence[Point] | None = None
    named: bool = True


@dataclass(frozen=True)
class Axis:
    """An axis: its label, whether it is logarithmic, whether it has whole numbers only, and how they are written."""

    label: str
    log: bool = False
    whole: bool = False
    show: Callable[[float], str] = field(default=plain)


@dataclass(frozen=True)
class Plot:
    """One or more series over the same axes; the numbers should stand in a table nearby.

    `note` stands below. A plot that `is_wide` takes the whole width of a page.
    """

    template: ClassVar[str] = "plot.html.jinja"
    title: str
    series: Sequence[Series]
    x: Axis
    y: Axis
    note: str = ""
    is_wide: bool = False

    def drawable(self) -> list[Series]:
        """The series without values that their axes cannot show: infinities, and on logarithmic ones 0 and less."""
        return [
            replace(
                series,
                points=self._drawable(series.points),
                line=None if series.line is None else self._drawable(series.line),
            )
            for series in self.series
        ]

    @property
    def is_empty(self) -> bool:
        """Whether no point can be drawn."""
        return not any(series.points for series in self.drawable())

    def _drawable(self, points: Sequence[Point]) -> list[Point]:
        return [
            replace(point, low=_drawable_end(point.low, self.y), high=_drawable_end(point.high, self.y))
            for point in points
            if _fits(point.x, self.x) and _fits(point.y, self.y)
        ]


def _fits(value: float, axis: Axis) -> bool:
    return math.isfinite(value) and (value > 0 or not axis.log)


def _drawable_end(value: float | None, axis: Axis) -> float | None:
    """The end of a range, None where the axis cannot show it."""
    return value if value is not None and _fits(value, axis) else None
