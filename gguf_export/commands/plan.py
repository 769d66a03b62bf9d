"""`moe-gguf plan`: tensor types under a budget of bytes, chosen by what each costs on a text."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gguf_export.commands.importing import importing
from gguf_export.commands.options import (
    FILE,
    MODEL,
    PRE,
    QUIET,
    RAY,
    ForwardOptions,
    TextOptions,
    force,
    forward_options,
    imatrix,
    jobs,
    prior,
    text_options,
)
from gguf_export.commands.planning_options import PlanningOptions, planning_options
from gguf_export.commands.streams import show, summary
from gguf_export.commands.trace import TRACE
from gguf_export.commands.verb import Verb, option

if TYPE_CHECKING:
    from gguf_export.planning.results import TypePlan


@click.command(cls=Verb)
@MODEL
@planning_options(["-t"])
@text_options
@option(
    "-o",
    "--output",
    type=FILE,
    metavar="FILE",
    help="Write the types for export --types, as llama-quantize takes them with --tensor-type-file.",
)
@option(
    "--json",
    "json_path",
    type=FILE,
    metavar="FILE.json",
    help="Write all figures and the types as JSON; export --types takes it, too, and the file then states them.",
)
@imatrix("Importance matrix to encode with.  [default: what the text gives]")
@option("--save-imatrix", type=FILE, metavar="FILE", help="Keep the importance matrix that the text gave.")
@prior(())
@PRE
@jobs()
@force(("output", "json_path", "save_imatrix"))
@forward_options()
@TRACE
@RAY
@QUIET
def plan(
    model: Path,
    planning: PlanningOptions,
    text: TextOptions,
    output: Path | None,
    json_path: Path | None,
    imatrix: str | None,
    save_imatrix: Path | None,
    prior: float,
    pre: str | None,
    jobs: int | None,
    force: bool,
    forward: ForwardOptions,
    ray: str | None,
    quiet: bool,
) -> None:
    """Choose a type for each tensor of MODEL, so that a file of a given size loses least.

    Text runs forward and back through MODEL, the folder of a checkpoint or a GGUF file, and tells what each type costs
    each tensor in KL divergence. Routers, norms and all that llama-quantize leaves alone keep their types.

    What is predicted stands beside what is measured on chunks of the text that were held out, for the file type's own
    types and for the chosen ones.
    """
    with importing():
        from gguf_export.commands.console import ProgressView
        from gguf_export.commands.messages import say
        from gguf_export.files.outputs import refuse_outputs
        from gguf_export.files.replacing import write_text
        from gguf_export.planning.plan_types import plan_types
        from gguf_export.reports.plan_data import plan_json
        from quantize.engine import Threads
        from quantize.sources.checkpoint_files import files_of_model

    settings = planning.settings()
    outputs = [path for path in (output, json_path, save_imatrix) if path is not None]
    inputs = [*files_of_model(model), *text.texts, *text.prompts, *([Path(imatrix)] if imatrix else [])]
    refuse_outputs(outputs, force=force, inputs=inputs)
    with ProgressView(quiet=quiet) as view, Threads(jobs) as engine:
        planned = plan_types(
            model,
            text.settings(),
            **settings,
            output=output,
            imatrix=imatrix,
            save_imatrix=save_imatrix,
            prior=prior,
            forward=forward.settings(),
            pre=pre,
            engine=engine,
            ray=ray,
            force=force,
            progress=view,
            note=say,
        )
    if json_path is not None:
        write_text(json_path, plan_json(planned))
    if not quiet:
        with summary() if outputs else nullcontext():
            print_types(planned)
            for path in outputs:
                show(f"written: {path}")


def print_types(planned: TypePlan) -> None:
    """Print what was chosen, kind by kind, and what it comes to."""
    from gguf_export.commands.console import print_table
    from gguf_export.reports.plan_tables import forecast_table, kinds_table, plan_words

    print_table("", *kinds_table(planned))
    print_table("", *forecast_table(planned))
    show(plan_words(planned))
