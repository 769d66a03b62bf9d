"""Figures as texts for programs and spreadsheets: JSON and CSV, whatever the names among them hold."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from quantize.containers.untrusted import label, printable

__all__ = ["as_data", "csv_text", "json_text"]

FORMULA = (
    "=",
    "+",
    "-",
    "@",
    "\uff1d",
    "\uff0b",
    "\uff0d",
    "\uff20",
)  # the latter: full-width forms of the former
"""Beginnings of a cell that spreadsheets take for a formula, which may fetch, send and run things."""


def csv_text(heads: Sequence[str], rows: Iterable[Iterable[object]]) -> str:
    """A table: numbers with nine digits, cells empty where there is no number, texts as `_safe_cell` says."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(map(_cell, heads))
    writer.writerows(map(_cell, row) for row in rows)
    return out.getvalue()


def _cell(value: object) -> object:
    if isinstance(value, str):
        return _safe_cell(value)
    if isinstance(value, float):
        return f"{value:.9g}" if math.isfinite(value) else ""
    return "" if value is None else value


def _safe_cell(text: str) -> str:
    """A text, on one line and printable; behind an apostrophe, as OWASP advises, where it begins like a formula."""
    text = printable(text)
    return f"'{text}" if text.lstrip().startswith(FORMULA) else text


def json_text(value: Any) -> str:
    """JSON in ASCII of what `as_data` makes of a value."""
    return json.dumps(as_data(value), indent=1, allow_nan=False)


def as_data(value: Any) -> Any:
    """The same value with None for NaN and infinities, which JSON has not, and names as valid text (see `label`)."""
    if isinstance(value, Mapping):
        return {as_data(key): as_data(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [as_data(item) for item in value]
    if isinstance(value, str):
        return label(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value
