"""`moe-gguf imatrix`: calibration text runs through the model, and what each expert saw is kept."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from gguf_export.commands.options import (
    FILE,
    MODEL,
    QUIET,
    RESTART,
    ForwardOptions,
    TextOptions,
    force,
    forward_options,
    text_options,
)
from gguf_export.commands.streams import show, summary
from gguf_export.commands.verb import Verb, option

if TYPE_CHECKING:
    from calibration.importance.observers import Collected


@click.command(cls=Verb)
@MODEL
@option(
    "-o", "--output", type=FILE, required=True, metavar="FILE", help="The file; .dat for the legacy form."
)
@text_options
@option("--process-output", is_flag=True, help="Collect output.weight, too.")
@force()
@RESTART
@forward_options()
@QUIET
def imatrix(
    model: Path,
    output: Path,
    text: TextOptions,
    process_output: bool,
    force: bool,
    restart: bool,
    forward: ForwardOptions,
    quiet: bool,
) -> None:
    """Run text through MODEL, the folder of a checkpoint or a GGUF file, and write llama.cpp's importance matrix.

    A run that was stopped goes on behind the last layer that it kept when the same command is given again.
    """
    from gguf_export.commands.console import ProgressView
    from gguf_export.commands.messages import say
    from gguf_export.writing.calibrate import calibrate

    with ProgressView(quiet=quiet) as view:
        collected = calibrate(
            model,
            text.settings(),
            output,
            process_output=process_output,
            forward=forward.settings(),
            force=force,
            restart=restart,
            progress=view,
            note=say,
        )
    if not quiet:
        with summary():
            _print_result(output, collected)


def _print_result(output: Path, collected: Collected) -> None:
    from gguf_export.commands.load import print_load

    print_load(collected)
    timings = collected.timings
    show(
        f"{output}: {timings.n_token:,} tokens, {timings.total:.1f} seconds, "
        f"{timings.tokens_per_second:,.0f} tokens/s, {timings.share_of_products:.0%} in matrix products"
    )
