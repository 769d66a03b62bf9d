"""`moe-gguf verify`: whether a GGUF file is sound, and what it was made from."""

from __future__ import annotations

from pathlib import Path

import click

from gguf_export.commands.completion import file_or, none_name
from gguf_export.commands.importing import importing
from gguf_export.commands.options import FILE, JSON, QUIET, jobs, prior
from gguf_export.commands.trace import TRACE
from gguf_export.commands.verb import Verb, option


@click.command(cls=Verb)
@click.argument("files", type=FILE, nargs=-1, required=True, metavar="FILE...")
@option(
    "--against",
    type=FILE,
    metavar="MODEL",
    help="The checkpoint or GGUF file that FILE was made from: every expert of every tensor is compared with it.",
)
@option(
    "--imatrix",
    metavar="FILE|none",
    needs=("against",),
    shell_complete=file_or(none_name),
    help="With --against: the importance matrix that was used, or none; every byte must be llama.cpp's.",
)
@option(
    "--quick",
    is_flag=True,
    needs=("against",),
    help="With --against: compare errors and codes only, do not encode again.",
)
@prior(("imatrix",))
@option(
    "--prune-layers",
    multiple=True,
    metavar="L0,L1,...",
    needs=("against",),
    help="With --against: the layers of MODEL that were left out of FILE.",
)
@option("--sha256", "sums", is_flag=True, help="Check FILE by SHA256SUMS beside it, or add it there.")
@jobs(("against",))
@JSON
@TRACE
@QUIET
def verify(
    files: tuple[Path, ...],
    against: Path | None,
    imatrix: str | None,
    quick: bool,
    prior: float,
    prune_layers: tuple[str, ...],
    sums: bool,
    jobs: int | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Say whether each GGUF FILE is sound, whoever made it. The first part of a file that is split stands for all.

    With --against, each expert is compared with MODEL: to the byte where FILE names no importance matrix, or
    where you give it with --imatrix; else by its errors and codes, which find every change but some low bits of scales.

    The exit status is 1 where an error is found; warnings leave it 0. With several files, each finding that --json
    lists names its file.
    """
    with importing():
        from gguf_export.checking import verify as checking
        from gguf_export.commands.console import ProgressView
        from gguf_export.commands.messages import show_all_findings, show_findings
        from quantize.recipes.pruning import parse_layers
        from quantize.sources.model_source import open_stored

    if quick and imatrix is not None:
        raise click.UsageError("--quick compares no bytes: leave --imatrix out")
    if prior and imatrix == "none":
        raise click.UsageError("--prior goes with --imatrix FILE")
    left_out = {bid for text in prune_layers for bid in parse_layers(text)}
    found = {}
    source = None if against is None else open_stored(against)
    with ProgressView(quiet=quiet) as view:
        for file in dict.fromkeys(files):
            found[file] = checking.verified_with(file, files) or checking.verify(
                file,
                against=source,
                level="bytes" if imatrix is not None else "errors" if quick else "auto",
                imatrix=None if imatrix == "none" else imatrix,
                prior=prior,
                prune_layers=left_out,
                sums=sums,
                jobs=jobs,
                progress=view,
            )
    if len(files) == 1:
        show_findings(found[files[0]], as_json)
    else:
        show_all_findings(found, as_json)
