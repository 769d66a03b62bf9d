"""`moe-gguf imatrix`: text runs through the model, and what each expert saw is kept; or matrices are merged."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gguf_export.commands.importing import importing
from gguf_export.commands.options import (
    FILE,
    QUIET,
    RAY,
    RESTART,
    SKIP_EXISTING,
    ForwardOptions,
    TextOptions,
    force,
    forward_options,
    text_options,
)
from gguf_export.commands.streams import show, summary, tell
from gguf_export.commands.trace import TRACE
from gguf_export.commands.verb import Verb, option

if TYPE_CHECKING:
    from calibration.importance.imatrix import Imatrix
    from calibration.importance.observers import Collected


@click.command(cls=Verb, modes={"merge": ("output", "n_ctx", "force", "skip_existing", "quiet")})
@click.argument("paths", nargs=-1, required=True, type=FILE, metavar="MODEL | FILE...")
@option(
    "-o", "--output", type=FILE, required=True, metavar="FILE", help="The file; .dat for the legacy form."
)
@option("--merge", is_flag=True, help="Add up the importance matrices FILE...; no model, no text.")
@text_options
@option("--process-output", is_flag=True, help="Collect output.weight, too.")
@force()
@SKIP_EXISTING
@RESTART
@forward_options()
@TRACE
@RAY
@QUIET
def imatrix(
    paths: tuple[Path, ...],
    output: Path,
    merge: bool,
    text: TextOptions,
    process_output: bool,
    force: bool,
    skip_existing: bool,
    restart: bool,
    forward: ForwardOptions,
    ray: str | None,
    quiet: bool,
) -> None:
    """Run text through MODEL, the folder of a checkpoint or a GGUF file, and write llama.cpp's importance matrix.

    A run that was stopped goes on behind the last layer that it kept when the same command is given again.

    With --merge the sums and tokens of the importance matrices FILE... are added, as llama-imatrix does with --in-file.
    """
    if force and skip_existing:
        raise click.UsageError("give --force or --skip-existing, not both")
    if skip_existing and os.path.lexists(output):
        tell(f"{output}: is there, and is left as it is")
        return
    if merge:
        _merge(paths, output, text.n_ctx, force, quiet)
        return
    if len(paths) > 1:
        raise click.UsageError(
            f"one MODEL is enough, {paths[1]} is too much; --merge takes importance matrices"
        )
    with importing():
        from gguf_export.commands.console import ProgressView
        from gguf_export.commands.messages import say
        from gguf_export.writing.calibrate import calibrate

    with ProgressView(quiet=quiet) as view:
        collected = calibrate(
            paths[0],
            text.settings(),
            output,
            process_output=process_output,
            forward=forward.settings(),
            force=force,
            restart=restart,
            ray=ray,
            progress=view,
            note=say,
        )
    if not quiet:
        with summary():
            _print_result(output, collected)


def _merge(files: tuple[Path, ...], output: Path, n_ctx: int, force: bool, quiet: bool) -> None:
    from gguf_export.commands.messages import say
    from gguf_export.writing.importances import merge_imatrices

    result = merge_imatrices(files, output, n_ctx=n_ctx, force=force, note=say)
    if not quiet:
        with summary():
            _print_merged(output, result, len(files))


def _print_merged(output: Path, result: Imatrix, n_file: int) -> None:
    show(
        f"{output}: {len(result.entries)} tensors from {n_file} files, {result.chunk_count:,} chunks of "
        f"{result.chunk_size:,} tokens"
    )


def _print_result(output: Path, collected: Collected) -> None:
    from gguf_export.commands.load import print_load

    print_load(collected)
    timings = collected.timings
    show(
        f"{output}: {timings.n_token:,} tokens, {timings.total:.1f} seconds, "
        f"{timings.tokens_per_second:,.0f} tokens/s, {timings.share_of_products:.0%} in matrix products"
    )
