"""`moe-gguf doctor`: what is wrong with a checkpoint, before hours of work."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gguf_export.commands.options import MODEL, QUIET

if TYPE_CHECKING:
    from gguf_export.checking.findings import Finding


@click.command()
@MODEL
@click.option("--full", is_flag=True, help="Read all weights, not a sample.")
@click.option("--pre", metavar="NAME", help="Pre-tokenizer, where it is not recognised.")
@click.option("--json", "as_json", is_flag=True, help="The findings, as JSON for programs.")
@QUIET
def doctor(model: Path, full: bool, pre: str | None, as_json: bool, quiet: bool) -> None:
    """Say what is wrong with the checkpoint in folder MODEL, before hours of work.

    The exit status is 1 where an error is found; warnings leave it 0.
    """
    from gguf_export.checking.doctor import examine
    from gguf_export.commands.console import ProgressView

    with ProgressView(quiet=quiet) as view:
        findings = examine(model, full=full, pre=pre, progress=view)
    finish(findings, as_json)


def _sum(findings: Sequence[Finding]) -> str:
    """`2 errors, 1 warning`, empty where nothing is wrong."""
    counts = {
        severity: sum(finding.severity == severity for finding in findings)
        for severity in ("error", "warning")
    }
    return ", ".join(f"{n} {severity}{'s' if n > 1 else ''}" for severity, n in counts.items() if n)


def finish(findings: Sequence[Finding], as_json: bool) -> None:
    """Print findings, the worst first, and exit so that a script knows."""
    from gguf_export.checking import findings as found

    ordered = sorted(findings, key=lambda finding: found.SEVERITIES.index(finding.severity))
    if as_json:
        click.echo(json.dumps(found.as_json(ordered), indent=1))
    else:
        for finding in ordered:
            click.echo(str(finding))
        click.echo(_sum(ordered) or "nothing is wrong")
    if found.worst(ordered) == "error":
        sys.exit(1)
