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
    forward_options,
    read_chunks,
    read_forward,
    text_options,
)

if TYPE_CHECKING:
    from calibration.observers import Collected

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
@forward_options
@QUIET
def imatrix(
    model: Path, output: Path, process_output: bool, force: bool, quiet: bool, **options: Any
) -> None:
    """Run text through the checkpoint in folder MODEL and write llama.cpp's importance matrix."""
    from calibration.imatrix import save_imatrix
    from calibration.observers import collect_imatrix
    from gguf_export.console import ProgressView
    from quantize.exceptions import OutputError
    from quantize.shards import open_checkpoint

    if output.exists() and not force:
        raise OutputError(f"{output}: exists already; pass --force to replace it")
    checkpoint = open_checkpoint(model)
    chunks = read_chunks(model, options)
    if chunks is None:
        raise click.UsageError("give --text FILE or --prompts FILE")
    arithmetic, storage = read_forward(options)
    with ProgressView(quiet=quiet) as view:
        collected = collect_imatrix(
            checkpoint,
            chunks,
            process_output=process_output,
            arithmetic=arithmetic,
            storage=storage,
            report=view,
        )
    save_imatrix(output, collected.imatrix, legacy=output.suffix == ".dat")
    if not quiet:
        print_load(collected)
        timings = collected.timings
        click.echo(
            f"{output}: {timings.n_token:,} tokens, {timings.total:.1f} seconds, "
            f"{timings.n_token / timings.total:,.0f} tokens/s, {timings.share_of_products:.0%} in matrix products"
        )


def print_load(collected: Collected) -> None:
    """The table of routed tokens per layer and expert, and a line for each expert that saw too few."""
    from gguf_export.console import print_table

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
    for bid, xid, n_token in load.starved(math.ceil(STARVED_SHARE * even)):
        click.echo(f"starved: layer {bid}, expert {xid}: {n_token:,} tokens, an even share is {even:,.0f}")
