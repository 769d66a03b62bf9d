"""`moe-gguf verify`: whether a GGUF file is sound, and what it was made from."""

from __future__ import annotations

import os
from pathlib import Path

import click

from gguf_export.commands.doctor import finish
from gguf_export.commands.options import FILE, JOBS, QUIET


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
    from gguf_export.checking import checksums
    from gguf_export.checking import verify as verifying
    from gguf_export.commands.console import ProgressView
    from quantize.sources.checkpoint import open_checkpoint

    if imatrix_name is not None and against is None:
        raise click.UsageError("--imatrix compares with a checkpoint: give --against MODEL, too")
    if quick and (against is None or imatrix_name is not None):
        raise click.UsageError("--quick goes with --against MODEL, and without --imatrix")
    if prior and imatrix_name in (None, "none"):
        raise click.UsageError("--prior goes with --imatrix FILE")
    checkpoint = open_checkpoint(against) if against else None
    imatrix = None
    if imatrix_name not in (None, "none"):
        from calibration.importance.imatrix_files import load_imatrix

        imatrix = load_imatrix(str(imatrix_name), prior=prior)
    with ProgressView(quiet=quiet) as view:
        findings = verifying.verify(
            file,
            against=checkpoint,
            exact=True if imatrix_name is not None else False if quick else None,
            imatrix=imatrix,
            jobs=jobs or os.cpu_count() or 1,
            progress=view,
        )
        if sums:
            findings.append(checksums.check_sum(file, view))
    finish(findings, as_json)
