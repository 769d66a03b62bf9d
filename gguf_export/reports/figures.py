"""Numbers and places as a person reads them, the same on the terminal and on a page."""

from __future__ import annotations

import math
from dataclasses import dataclass
from decimal import Decimal

__all__ = ["NOTHING", "SizeUnit", "count", "expert_place", "percent", "plain", "significant"]

NOTHING = "-"
"""Stands where there is no number."""


def significant(value: float | None, digits: int = 3) -> str:
    """Write a value with `digits` significant digits: 0.00123, 4.50, 12,300.

    An exponent stands only where zeros would be hard to count.
    """
    if value is None or not math.isfinite(value):
        return NOTHING
    if value == 0:
        return "0"
    short = f"{value:.{digits - 1}e}"
    places = max(0, digits - 1 - int(short.partition("e")[2]))
    return short if places > 10 else f"{value:,.{places}f}"


def plain(value: float, digits: int = 3) -> str:
    """Write a value with at most `digits` significant digits and no trailing zeros: 0.1, 0.015, 20; 1e-06."""
    short = f"{value:.{digits}g}"
    return short if value and abs(value) < 0.99e-5 else f"{Decimal(short):f}"


def percent(value: float | None, digits: int = 3) -> str:
    """Write a share (1 is all of it) in percent: 0.202 %."""
    return NOTHING if value is None else f"{significant(100 * value, digits)} %"


def count(value: float | None) -> str:
    """Write a whole number with separators of thousands."""
    return NOTHING if value is None else f"{value:,.0f}"


def expert_place(bid: int, xid: int) -> str:
    """Write the place of an expert: layer 3, expert 5."""
    return f"layer {bid}, expert {xid}"


@dataclass(frozen=True)
class SizeUnit:
    """A decimal unit of sizes, as the Hugging Face hub shows them: GB is 10^9 bytes."""

    name: str
    n_bytes: int

    @staticmethod
    def of(n_bytes: int) -> SizeUnit:
        """The unit for files of which the largest has so many bytes."""
        return SizeUnit("GB", 10**9) if n_bytes >= 10**9 else SizeUnit("MB", 10**6)

    def show(self, n_bytes: float) -> str:
        """A size in this unit, without its name: levels of a model differ by little."""
        return f"{n_bytes / self.n_bytes:,.{3 if self.n_bytes == 10**9 else 2}f}"
