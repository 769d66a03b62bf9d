"""`moe-gguf verify`: whether a GGUF file is sound, and what it was made from."""

from __future__ import annotations

from pathlib import Path

import click

from gguf_export.commands.options import FILE, JOBS, QUIET
from gguf_export.commands.show_findings import show_findings


@click.command()
@click.argument("file", type=FILE)
@click.option(
    "--against",
    type=FILE,
    metavar="MODEL",
    help="The checkpoint that FILE was made from: every expert of every tensor is compared with it.",
)
@click.option(
    "--imatrix",
    "imatrix_name",
    metavar="FILE|none",
    help="With --against: the importance matrix that was used, or none; every byte must be llama.cpp's.",
)
@click.option(
    "--quick", is_flag=True, help="With --against: compare errors and codes only, do not encode again."
)
@click.option(
    "--prior", type=click.FloatRange(min=0), default=0.0, metavar="N", help="With --imatrix: as in export."
)
@click.option("--sha256", "sums", is_flag=True, help="Check FILE by SHA256SUMS beside it, or add it there.")
@JOBS
@click.option("--json", "as_json", is_flag=True, help="The findings, as JSON for programs.")
@QUIET
def verify(
    file: Path,
    against: Path | None,
    imatrix_name: str | None,
    quick: bool,
    prior: float,
    sums: bool,
    jobs: int | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Say whether a GGUF FILE is sound, whoever made it.

    With --against, each expert is compared with the checkpoint: to the byte where FILE names no importance matrix, or
    where you give it with --imatrix; else by its errors and codes, which find every change but some low bits of scales.

    The exit status is 1 where an error is found; warnings leave it 0.
    """
    from gguf_export.checking import verify as checking
    from gguf_export.commands.console import ProgressView

    if imatrix_name is not None and against is None:
        raise click.UsageError("--imatrix compares with a checkpoint: give --against MODEL, too")
    if quick and (against is None or imatrix_name is not None):
        raise click.UsageError("--quick goes with --against MODEL, and without --imatrix")
    if prior and imatrix_name in (None, "none"):
        raise click.UsageError("--prior goes with --imatrix FILE")
    with ProgressView(quiet=quiet) as view:
        findings = checking.verify(
            file,
            against=against,
            level="bytes" if imatrix_name is not None else "errors" if quick else "auto",
            imatrix=None if imatrix_name == "none" else imatrix_name,
            prior=prior,
            sums=sums,
            jobs=jobs,
            progress=view,
        )
    show_findings(findings, as_json)
