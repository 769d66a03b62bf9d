"""Heat maps as plain data: numbers, how they are written, and which of the eight colours each gets."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from gguf_export.reports.pages import SWITCH_FROM

__all__ = ["N_LEVELS", "Cell", "HeatMap", "Legend", "Ramp", "Scale"]

N_LEVELS = 8
"""Colours of a ramp, from little to much; the style sheet numbers them from 0."""

MAX_LABEL = 12.0  # rem, for the names of the rows; longer ones wrap

Ramp = Literal["load", "error"]
"""The colours of a heat map, by their name in the style sheet."""


@dataclass(frozen=True)
class Scale:
    """Maps numbers to levels of colour, 0 to N_LEVELS - 1, in even steps from `low` to `high`, or in even ratios."""

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
        """The level of a value; a value outside the scale gets the level of its end."""
        if self.high <= self.low or value <= self.low:
            return 0
        if self.log:
            share = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return min(N_LEVELS - 1, int(share * N_LEVELS))


@dataclass(frozen=True)
class Cell:
    """One place of a heat map: its number (None: it has none), the number in few characters, and the text on hovering.

    `warn` marks a cell whose lack of a number is a warning; it is hatched.
    """

    value: float | None
    shown: str
    title: str
    warn: bool = False


@dataclass(frozen=True)
class HeatMap:
    """A coloured table; `cells[row][column]` is None where the place does not exist.

    `in_words`: the columns have names, which wrap; else numbers.
    """

    template: ClassVar[str] = "heat_map.html.jinja"
    caption: str
    row_label: str
    rows: Sequence[str]
    column_label: str
    columns: Sequence[str]
    cells: Sequence[Sequence[Cell | None]]
    scale: Scale
    ramp: Ramp
    in_words: bool = False

    def kind(self, cell: Cell) -> str:
        """The class of a cell in the style sheet."""
        if cell.warn:
            return "warn"
        return "none" if cell.value is None else f"c{self.scale.level(cell.value)}"

    @property
    def is_dense(self) -> bool:
        """Whether there are too many columns for numbers in the cells."""
        return len(self.columns) > SWITCH_FROM

    @property
    def is_tall(self) -> bool:
        """Whether there are too many rows for tall ones."""
        return len(self.rows) > 16

    @property
    def label_every(self) -> int:
        """The distance, in columns, of the labels that are shown; the others are only read aloud."""
        return max(4, 4 * round(len(self.columns) / 32)) if self.is_dense else 1

    @property
    def label_width(self) -> float:
        """Room for the names of the rows, in rem."""
        return min(MAX_LABEL, max([4.5, *(0.9 + 0.48 * len(label) for label in self.rows)]))


@dataclass(frozen=True)
class Legend:
    """The colours of a ramp between its ends in words, and the meanings of hatched cells."""

    template: ClassVar[str] = "legend.html.jinja"
    label: str
    low: str
    high: str
    ramp: Ramp
    warnings: Sequence[str] = ()
    levels: ClassVar[range] = range(N_LEVELS)
