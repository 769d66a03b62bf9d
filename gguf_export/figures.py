"""Numbers as a person reads them, the same on the terminal and on a page."""

from __future__ import annotations

import math

__all__ = ["NOTHING", "count", "percent", "significant"]

NOTHING = "-"
"""Stands where there is no number."""


def significant(value: float | None, digits: int = 3) -> str:
    """So many significant digits: 0.00123, 4.50, 12,300; with an exponent only where zeros would be hard to count."""
    if value is None or not math.isfinite(value):
        return NOTHING
    if value == 0:
        return "0"
    short = f"{value:.{digits - 1}e}"
    places = max(0, digits - 1 - int(short.partition("e")[2]))
    return short if places > 10 else f"{value:,.{places}f}"


def percent(value: float | None, digits: int = 3) -> str:
    """A share, 1 being all: 0.202 %."""
    return NOTHING if value is None else f"{significant(100 * value, digits)} %"


def count(value: float | None) -> str:
    """A whole number with separators."""
    return NOTHING if value is None else f"{value:,.0f}"
