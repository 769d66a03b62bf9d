"""The error report as a page, a CSV table or JSON."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

from calibration.judging.matrix_errors import ErrorReport
from gguf_export.files.outputs import refuse_outputs
from gguf_export.files.replacing import write_files
from gguf_export.reports.data_texts import csv_text, json_text
from quantize.exceptions import OutputError

__all__ = ["FORMATS", "check_outputs", "errors_csv", "errors_json", "write_errors"]

MEASURES = ("rms", "relative", "weighted", "nmse", "cosine")


def errors_csv(report: ErrorReport) -> str:
    """One line for each matrix and type, numbers with nine digits; a cell is empty where there is no number.

    Columns: the place of the matrix, its size, the tokens that it saw, the measures of `matrix_errors.Errors`, and
    under `plain_` the same measures of the type without importances.
    """
    where = ("tensor", "layer", "projection", "expert", "qtype", "tensor_type", "fallback")
    counts = ("n_elements", "n_bytes", "n_tokens", "n_effective", "n_held_out", "n_judged")
    lines = []
    for row in report.rows:
        values = [row.name, row.bid, row.projection, row.xid, row.qtype, row.tensor_type, row.fallback]
        values += [getattr(row, name) for name in counts]
        for errors in (row.errors, row.plain):
            values += [None if errors is None else getattr(errors, measure) for measure in MEASURES]
        lines.append(values)
    return csv_text([*where, *counts, *MEASURES, *(f"plain_{measure}" for measure in MEASURES)], lines)


def errors_json(report: ErrorReport) -> str:
    """The whole report; null where there is no number."""
    return json_text(asdict(report) | {"facts": dict(report.facts)}) + "\n"


def errors_html(report: ErrorReport) -> str:
    """The report as a page."""
    from gguf_export.reports.error_page import error_page  # noqa: PLC0415 - matplotlib and jinja2 for pages only

    return error_page(report)


FORMATS: dict[str, Callable[[ErrorReport], str]] = {
    ".csv": errors_csv,
    ".json": errors_json,
    ".html": errors_html,
}
"""Suffix of a file -> the form that it is written in."""


def write_errors(paths: Sequence[Path], report: ErrorReport) -> None:
    """Write the report in the forms that the files' suffixes name; files appear when all are whole.

    Raises:
        OutputError: a suffix names no form, or a file cannot be written.
    """
    check_outputs(paths, force=True)
    write_files([(path, FORMATS[path.suffix.lower()](report).encode("utf-8")) for path in paths])


def check_outputs(paths: Sequence[Path], *, force: bool = False, inputs: Iterable[Path] = ()) -> None:
    """Refuse output files before hours of work.

    Raises:
        OutputError: a suffix names no form, a file exists (without `force`), or see `refuse_outputs`.
    """
    for path in paths:
        if path.suffix.lower() not in FORMATS:
            raise OutputError(
                str(path), f"a report can be written as {', '.join(FORMATS)}", "name the file so"
            )
    refuse_outputs(paths, force=force, inputs=inputs)
