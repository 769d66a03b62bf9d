"""`moe-gguf errors`: what each type costs each expert, judged on held-out text."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gguf_export.commands.completion import mixed_names
from gguf_export.commands.importing import importing
from gguf_export.commands.options import (
    FILE,
    MODEL,
    QUIET,
    RAY,
    TEXT,
    ForwardOptions,
    TextOptions,
    force,
    forward_options,
    ftypes,
    jobs,
    prior,
    text_options,
)
from gguf_export.commands.streams import show, summary
from gguf_export.commands.trace import TRACE
from gguf_export.commands.verb import Verb, option

if TYPE_CHECKING:
    from calibration.judging.matrix_errors import ErrorReport

MOST_NAMED = 10
"""Unseen experts that are named; the rest are counted."""


@click.command(cls=Verb)
@MODEL
@ftypes(
    "Tensor type, such as Q4_K, or file type, such as Q4_K_M, in which each tensor has the type of that mixture; may "
    "be repeated.",
    required=True,
    names=mixed_names,
)
@text_options
@option(
    "--held-out",
    multiple=True,
    type=FILE,
    metavar="FILE",
    help="Text to judge on, such as builtin:held-out; may be repeated. --chunks takes so many of it, evenly spread.  "
    "[default: every fifth chunk of the calibration text]",
)
@option(
    "-o",
    "--output",
    "outputs",
    multiple=True,
    type=FILE,
    metavar="FILE",
    help="Write the report as .csv, .json or .html; may be repeated.",
)
@prior(TEXT)
@option(
    "--baseline/--no-baseline",
    default=True,
    help="Measure each type without importances, too.  [default: do]",
)
@option(
    "--rows",
    "n_judged",
    type=click.IntRange(min=1),
    default=1024,
    show_default=True,
    metavar="N",
    help="Held-out tokens that each matrix is judged on, at most.",
)
@jobs()
@force(("outputs",))
@forward_options()
@TRACE
@RAY
@QUIET
def errors(
    model: Path,
    types: tuple[str, ...],
    text: TextOptions,
    held_out: tuple[Path, ...],
    outputs: tuple[Path, ...],
    prior: float,
    baseline: bool,
    n_judged: int,
    jobs: int | None,
    force: bool,
    forward: ForwardOptions,
    ray: str | None,
    quiet: bool,
) -> None:
    """Report what each TYPE costs every layer, projection and expert of MODEL, the folder of a checkpoint or a
    GGUF file."""
    with importing():
        from calibration.judging.encoding_errors import ErrorSettings
        from gguf_export.commands.console import ProgressView
        from gguf_export.commands.messages import say
        from gguf_export.comparing import errors as comparing
        from gguf_export.reports.error_report import check_outputs, write_errors
        from quantize.engine import Threads
        from quantize.sources.checkpoint_files import files_of_model

    settings = ErrorSettings.of(types, prior=prior, baseline=baseline, n_judged=n_judged)
    inputs = [*files_of_model(model), *text.texts, *text.prompts, *held_out]
    check_outputs(outputs, force=force, inputs=inputs)
    with ProgressView(quiet=quiet) as view, Threads(jobs) as engine:
        report = comparing.errors(
            model,
            text.settings(),
            settings,
            held_out=held_out,
            forward=forward.settings(),
            engine=engine,
            ray=ray,
            progress=view,
            note=say,
        )
    write_errors(outputs, report)
    if quiet:
        return
    with summary() if outputs else nullcontext():
        _print_report(report)
        for path in outputs:
            show(f"written: {path}")


def _print_report(report: ErrorReport) -> None:
    """Print totals by type, the worst ten of the type that hurts most, and the experts of which nothing is known."""
    from calibration.judging.matrix_errors import totals
    from gguf_export.commands.console import print_table
    from gguf_export.reports.error_tables import totals_table, worst_table
    from gguf_export.reports.figures import expert_place

    print_table("totals by type", *totals_table(report))
    hurts = max(report.qtypes, key=lambda qtype: totals(qtype, report.of(qtype)).median_nmse or 0.0)
    print_table(f"the worst ten as {hurts}", *worst_table(report.of(hurts)))
    for experts, fact in (
        (report.unseen, "unseen: no calibration token reached"),
        (report.unjudged, "no output error: no held-out token reached"),
    ):
        names = "; ".join(expert_place(bid, xid) for bid, xid in experts[:MOST_NAMED])
        more = f" and {len(experts) - MOST_NAMED} more" * (len(experts) > MOST_NAMED)
        if experts:
            show(f"{fact} {names}{more}")
    for row in {(row.qtype, row.fallback): row for row in report.rows if row.fallback}.values():
        n_rows = sum(other.fallback == row.fallback for other in report.of(row.qtype))
        show(
            f"{row.qtype}: {n_rows} matrices have rows that their type does not divide; judged as {row.fallback}"
        )
