"""`moe-gguf errors`: what each type costs each expert, judged on held-out text."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gguf_export.commands.options import (
    FILE,
    JOBS,
    MODEL,
    QUIET,
    forward_options,
    open_model,
    read_chunks,
    read_forward,
    text_options,
)

if TYPE_CHECKING:
    from calibration.judging.matrix_errors import ErrorReport
    from calibration.text.chunks import Chunks
    from quantize.sources.checkpoint import Checkpoint
    from quantize.sources.gguf_file import GGUFFile

MOST_NAMED = 10
"""Starved experts that are named; the rest are counted."""


@click.command()
@MODEL
@click.option(
    "-t",
    "--type",
    "qtypes",
    multiple=True,
    required=True,
    metavar="TYPE",
    help="Tensor type, such as Q4_K; may be repeated.",
)
@text_options
@click.option(
    "--held-out",
    multiple=True,
    type=FILE,
    metavar="FILE",
    help="Text to judge on; may be repeated. --chunks takes so many of it, evenly spread.  "
    "[default: every fifth chunk of the calibration text]",
)
@click.option(
    "-o",
    "--output",
    "outputs",
    multiple=True,
    type=FILE,
    metavar="FILE",
    help="Write the report as .csv, .json or .html; may be repeated.",
)
@click.option(
    "--prior",
    type=click.FloatRange(min=0),
    default=0.0,
    metavar="N",
    help="Draw an expert's importances toward its layer's mean with the weight of N tokens.",
)
@click.option(
    "--baseline/--no-baseline",
    default=True,
    help="Measure each type without importances, too.  [default: do]",
)
@click.option(
    "--rows",
    "n_judged",
    type=click.IntRange(min=1),
    default=1024,
    show_default=True,
    metavar="N",
    help="Held-out tokens that each matrix is judged on, at most.",
)
@JOBS
@click.option("--force", is_flag=True, help="Replace files that exist.")
@forward_options
@QUIET
def errors(
    model: Path,
    qtypes: tuple[str, ...],
    held_out: tuple[Path, ...],
    outputs: tuple[Path, ...],
    prior: float,
    baseline: bool,
    n_judged: int,
    jobs: int | None,
    force: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Report what each TYPE costs every layer, projection and expert of MODEL, the folder of a checkpoint or a
    GGUF file."""
    from calibration.judging.output_error import measure_errors
    from gguf_export.commands.console import ProgressView
    from gguf_export.reports.error_report import check_outputs, write_errors
    from quantize.recipes.tensor_types import parse_qtype

    wanted = [parse_qtype(qtype) for qtype in qtypes]
    check_outputs(outputs, force=force)
    source = open_model(model)
    fit, judged = _read_texts(source, held_out, options)
    arithmetic, storage = read_forward(options)
    with ProgressView(quiet=quiet) as view:
        report = measure_errors(
            source,
            fit,
            judged,
            wanted,
            model=model.resolve().name,
            prior=prior,
            baseline=baseline,
            n_judged=n_judged,
            arithmetic=arithmetic,
            storage=storage,
            jobs=jobs,
            progress=view,
        )
    for path in outputs:
        write_errors(path, report)
    if not quiet:
        _print_report(report)
        for path in outputs:
            click.echo(f"written: {path}")


def _read_texts(
    model: Checkpoint | GGUFFile, held_out: tuple[Path, ...], options: dict[str, Any]
) -> tuple[Chunks, Chunks]:
    """The text to fit on and the one to judge on."""
    from calibration.judging.held_out import hold_out, spread

    other = {**options, "texts": held_out, "prompts": (), "n_chunk": None}
    n_chunk = options["n_chunk"]
    fit, judged = read_chunks(model, options), read_chunks(model, other)
    if fit is None:
        raise click.UsageError("give the calibration text with --text FILE or --prompts FILE")
    return (fit, spread(judged, n_chunk)) if judged is not None else hold_out(fit)


def _print_report(report: ErrorReport) -> None:
    """Totals by type, the worst ten of the type that hurts most, and the experts of which nothing is known."""
    from calibration.judging.matrix_errors import totals
    from gguf_export.commands.console import print_table
    from gguf_export.reports.error_tables import totals_table, worst_table

    print_table("totals by type", *totals_table(report))
    hurts = max(report.qtypes, key=lambda qtype: totals(qtype, report.of(qtype)).median_nmse or 0.0)
    print_table(f"the worst ten as {hurts}", *worst_table(report.of(hurts)))
    for places, told in (
        (report.starved, "starved: no calibration token reached"),
        (report.unjudged, "no output error: no held-out token reached"),
    ):
        named = ", ".join(f"layer {bid} expert {xid}" for bid, xid in places[:MOST_NAMED])
        if places:
            click.echo(
                f"{told} {named}{f' and {len(places) - MOST_NAMED} more' * (len(places) > MOST_NAMED)}"
            )
    for row in {(row.qtype, row.fallback): row for row in report.rows if row.fallback}.values():
        n_rows = sum(one.fallback == row.fallback for one in report.of(row.qtype))
        click.echo(
            f"{row.qtype}: {n_rows} matrices have rows that it does not divide; judged as {row.fallback}"
        )
