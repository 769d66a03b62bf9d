"""The tables of an error report, as text: for the terminal and for the page."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from calibration.judging.matrix_errors import ErrorReport, MatrixErrors, Totals, totals, worst
from gguf_export.reports.figures import NOTHING, count, percent

__all__ = ["projection_table", "totals_table", "worst_table"]

Columns = tuple[str, ...]
Lines = list[tuple[str, ...]]


def totals_table(report: ErrorReport) -> tuple[Columns, Lines]:
    """Columns and lines of the totals by type; '>' marks columns of numbers."""
    columns = ("type", ">bpw", ">weight error", ">median output error", ">worst", ">mean cosine")
    compared = (">median without importances", ">importances helped")
    found = [totals(qtype, report.of(qtype)) for qtype in report.qtypes]
    with_plain = any(row.plain is not None for row in report.rows)
    return columns + compared * with_plain, [_total_line(one) + _compared(one) * with_plain for one in found]


def _total_line(one: Totals) -> tuple[str, ...]:
    return (
        one.label,
        f"{one.bpw:.2f}",
        percent(one.relative),
        percent(one.median_nmse),
        _worst(one),
        _cosine(one.mean_cosine),
    )


def _compared(one: Totals) -> tuple[str, ...]:
    return (percent(one.median_plain_nmse), _helped(one))


def _helped(one: Totals) -> str:
    return f"{count(one.n_helped)} of {count(one.n_compared)}" if one.n_compared else NOTHING


def worst_table(rows: Sequence[MatrixErrors], n: int = 10) -> tuple[Columns, Lines]:
    """Columns and lines of the matrices that lost most."""
    experts = any(row.xid is not None for row in rows)
    compared = any(row.plain is not None for row in rows)
    columns = ("matrix", *(">tokens routed", ">effective") * experts, ">output error")
    return (*columns, *(">without importances",) * compared, ">cosine"), [
        (
            row.place,
            *(count(row.n_tokens), count(row.n_effective)) * experts,
            percent(row.errors.nmse),
            *(percent(row.plain.nmse) if row.plain else NOTHING,) * compared,
            _cosine(row.errors.cosine),
        )
        for row in worst(rows, n)
    ]


def projection_table(rows: Sequence[MatrixErrors]) -> tuple[Columns, Lines]:
    """Columns and lines of the totals of each projection."""
    compared = any(row.plain is not None for row in rows)
    columns = ("projection", ">matrices", ">weight error", ">median output error", ">worst")
    lines: Lines = []
    ordered = sorted(rows, key=lambda row: row.projection)
    for projection, group in groupby(ordered, key=lambda row: row.projection):
        one = totals(projection, list(group))
        numbers = (percent(one.relative), percent(one.median_nmse), _worst(one))
        lines.append((projection, count(one.n_matrices), *numbers, *(_helped(one),) * compared))
    return (*columns, *(">importances helped",) * compared), lines


def _worst(one: Totals) -> str:
    return percent(one.worst.errors.nmse) if one.worst else NOTHING


def _cosine(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.6f}"
