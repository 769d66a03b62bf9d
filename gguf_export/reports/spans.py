"""The range of an axis and its ticks: round numbers, few enough to read."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from gguf_export.reports.canvas import LogLocator, MaxNLocator
from gguf_export.reports.plots import Axis
from quantize.containers.untrusted import printable

__all__ = ["Span"]

MAX_TICKS = 8


@dataclass(frozen=True)
class Span:
    """An axis from `low` to `high` with round numbers between, and how they are written."""

    axis: Axis
    low: float
    high: float
    ticks: Sequence[float]

    @property
    def labels(self) -> list[str]:
        """The ticks in words."""
        return [printable(self.axis.show(tick)) for tick in self.ticks]

    @staticmethod
    def over(axis: Axis, values: Iterable[float]) -> Span:
        """The span that holds some values, with a little room on either side."""
        known = list(values)
        low, high = min(known), max(known)
        if axis.log:
            room = max(1.1, (high / low) ** 0.06)
            low, high = low / room, high * room
            return Span(axis, low, high, _log_ticks(low, high))
        room = (high - low) * 0.05 or abs(high) * 0.1 or 1.0
        low, high = low - room, high + room
        return Span(axis, low, high, _even_ticks(low, high, axis.whole))


def _even_ticks(low: float, high: float, whole: bool) -> list[float]:
    locator = MaxNLocator(nbins=5, steps=[1, 2, 5, 10], integer=whole, min_n_ticks=1)
    return _within(locator.tick_values(low, high), low, high)


def _log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten; where fewer than three are in sight, numbers between."""
    ticks: list[float] = []
    for steps in ((1.0,), (1.0, 3.0), (1.0, 2.0, 5.0), (1.0, 1.5, *range(2, 10))):
        locator = LogLocator(subs=steps, numticks=50)
        ticks = _within(locator.tick_values(low, high), low, high)
        if len(ticks) >= 3:
            break
    return ticks[:: math.ceil(len(ticks) / MAX_TICKS)] if ticks else _even_ticks(low, high, False)


def _within(ticks: Iterable[float], low: float, high: float) -> list[float]:
    return [float(tick) for tick in ticks if low <= tick <= high]
