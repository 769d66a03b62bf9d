"""`moe-gguf imatrix`: calibration text runs through the model, and what each expert saw is kept."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gguf_export.commands.options import (
    FILE,
    MODEL,
    QUIET,
    RESTART,
    forward_options,
    open_model,
    read_chunks,
    read_forward,
    say,
    text_options,
)

if TYPE_CHECKING:
    from calibration.importance.imatrix import Imatrix
    from calibration.importance.observers import Collected

STARVED_SHARE = 0.05
"""An expert that got less than this of an even share of its layer's tokens is named as starved."""

MOST_COLUMNS = 16
"""Experts that the table shows side by side; beyond, it shows their extremes."""


@click.command()
@MODEL
@click.option(
    "-o", "--output", type=FILE, required=True, metavar="FILE", help="The file; .dat for the legacy form."
)
@text_options
@click.option("--process-output", is_flag=True, help="Collect output.weight, too.")
@click.option("--force", is_flag=True, help="Replace a file that exists.")
@RESTART
@forward_options
@QUIET
def imatrix(
    model: Path,
    output: Path,
    process_output: bool,
    force: bool,
    restart: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Run text through MODEL, the folder of a checkpoint or a GGUF file, and write llama.cpp's importance matrix.

    A run that was stopped goes on behind the last layer that it kept when the same command is given again.
    """
    from calibration.importance.observers import collect_imatrix
    from gguf_export.commands.console import ProgressView
    from gguf_export.files.replacing import is_device
    from gguf_export.writing import fingerprint, pass_state
    from gguf_export.writing.pass_state import StateFile, discard_older, state_path
    from quantize.exceptions import OutputError

    if is_device(output):
        raise OutputError(f"{output}: is no file, so it cannot be replaced; choose another name")
    if output.exists() and not force:
        discard_older(output)
        raise OutputError(f"{output}: exists already; pass --force to replace it")
    if not output.absolute().parent.is_dir():
        raise OutputError(f"{output}: there is no such folder; make it first")
    source = open_model(model)
    chunks = read_chunks(source, options)
    if chunks is None:
        raise click.UsageError("give --text FILE or --prompts FILE")
    settings = read_forward(options)
    told = pass_state.fingerprint([chunks], settings) | {
        "checkpoint": fingerprint.of_model(source),
        "choice of tensors": "with output.weight" if process_output else "",
    }
    with StateFile(state_path(output), output.name, told, restart=restart, note=say) as keeper:
        with ProgressView(quiet=quiet) as view:
            collected = collect_imatrix(
                source,
                chunks,
                process_output=process_output,
                settings=settings,
                keeper=keeper,
                progress=view,
            )
        save(output, collected.imatrix, legacy=output.suffix == ".dat")
    if not quiet:
        print_load(collected)
        timings = collected.timings
        click.echo(
            f"{output}: {timings.n_token:,} tokens, {timings.total:.1f} seconds, "
            f"{timings.n_token / timings.total:,.0f} tokens/s, {timings.share_of_products:.0%} in matrix products"
        )


def save(output: Path, imatrix: Imatrix, *, legacy: bool = False) -> None:
    """The file appears when it is whole and on the disk."""
    from calibration.importance.imatrix_files import save_imatrix
    from gguf_export.files.replacing import replacing
    from quantize.exceptions import OutputError

    try:
        with replacing(output) as partial:
            save_imatrix(partial, imatrix, legacy=legacy)
    except OSError as error:
        raise OutputError(f"{output}: cannot be written: {error.strerror or error}") from error


def print_load(collected: Collected) -> None:
    """The table of routed tokens per layer and expert, and a line for each expert that saw too few."""
    from gguf_export.commands.console import print_table

    load = collected.load
    n_layer, n_expert = load.tokens.shape
    if not n_expert or not load.n_token:
        return
    if n_expert <= MOST_COLUMNS:
        columns = [f">expert {xid}" for xid in range(n_expert)]
        rows = [[f"{count:,}" for count in counts] for counts in load.tokens.tolist()]
    else:
        columns = [">fewest", ">median", ">most"]
        rows = [
            [f"{count:,}" for count in (min(counts), sorted(counts)[n_expert // 2], max(counts))]
            for counts in load.tokens.tolist()
        ]
    print_table(
        f"tokens routed to each expert, of {load.n_token:,}",
        ("layer", *columns, ">router entropy"),
        [
            (str(bid), *row, f"{entropy:.2f}")
            for bid, row, entropy in zip(range(n_layer), rows, load.entropy.tolist(), strict=True)
        ],
    )
    used = int(load.tokens.sum()) / max(1, int(load.tokens.any(axis=1).sum())) / load.n_token
    even = load.n_token * used / n_expert
    starved = load.starved(math.ceil(STARVED_SHARE * even))
    for bid, xid, n_token in starved:
        click.echo(f"starved: layer {bid}, expert {xid}: {n_token:,} tokens, an even share is {even:,.0f}")
    if starved and not collected.imatrix.prior:
        click.echo(
            "more text of their kind feeds them; export --prior 8 draws them toward their layer's mean"
        )
