"""The tables of an error report, as text: for the terminal and for the page."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from calibration.judging.matrix_errors import ErrorReport, MatrixErrors, Totals, totals, worst
from gguf_export.reports.figures import NOTHING, count, expert_place, percent
from gguf_export.reports.pages import TableText

__all__ = ["projection_table", "totals_table", "unknown_table", "worst_table"]

MAX_NAMED = 20
"""Experts of which too little is known that are named; the rest are counted."""


def totals_table(report: ErrorReport) -> TableText:
    """The table of the totals by type."""
    columns = ("type", ">bpw", ">weight error", ">median output error", ">worst", ">mean cosine")
    compared = (">median without importances", ">importances helped")
    by_type = [totals(qtype, report.of(qtype)) for qtype in report.qtypes]
    with_plain = any(row.plain is not None for row in report.rows)
    rows = [_total_cells(total) + _compared_cells(total) * with_plain for total in by_type]
    return columns + compared * with_plain, rows


def _total_cells(total: Totals) -> tuple[str, ...]:
    return (
        total.label,
        f"{total.bpw:.2f}",
        percent(total.relative),
        percent(total.median_nmse),
        _worst(total),
        _cosine(total.mean_cosine),
    )


def _compared_cells(total: Totals) -> tuple[str, ...]:
    return (percent(total.median_plain_nmse), _helped(total))


def _helped(total: Totals) -> str:
    return f"{count(total.n_helped)} of {count(total.n_compared)}" if total.n_compared else NOTHING


def worst_table(rows: Sequence[MatrixErrors], n: int = 10) -> TableText:
    """The table of the `n` matrices that lost most."""
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


def projection_table(rows: Sequence[MatrixErrors]) -> TableText:
    """The table of the totals of each projection."""
    compared = any(row.plain is not None for row in rows)
    columns = ("projection", ">matrices", ">weight error", ">median output error", ">worst")
    lines: list[tuple[str, ...]] = []
    ordered = sorted(rows, key=lambda row: row.projection)
    for projection, group in groupby(ordered, key=lambda row: row.projection):
        total = totals(projection, list(group))
        numbers = (percent(total.relative), percent(total.median_nmse), _worst(total))
        lines.append((projection, count(total.n_matrices), *numbers, *(_helped(total),) * compared))
    return (*columns, *(">importances helped",) * compared), lines


def unknown_table(report: ErrorReport) -> TableText:
    """The table of the experts of which too little is known; without rows where there are none."""
    gaps = (
        (report.unseen, "no calibration token: quantized without knowing its inputs"),
        (report.unjudged, "no held-out token: output error not known"),
    )
    places = sorted({place for lacking, _ in gaps for place in lacking})
    rows: list[tuple[str, ...]] = [
        (expert_place(bid, xid), "; ".join(gap for lacking, gap in gaps if (bid, xid) in lacking))
        for bid, xid in places[:MAX_NAMED]
    ]
    if len(places) > MAX_NAMED:
        rows.append((f"… and {count(len(places) - MAX_NAMED)} more", "see the hatched cells"))
    return ("expert", "what is not known"), rows


def _worst(total: Totals) -> str:
    return percent(total.worst.errors.nmse) if total.worst else NOTHING


def _cosine(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.6f}"
