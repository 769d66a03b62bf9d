"""The findings of `doctor` and `verify` on the screen, and the exit status that follows from them."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from gguf_export.checking.findings import Findings


def show_findings(findings: Findings, as_json: bool) -> None:
    """Print findings, the worst first, and exit with 1 where there is an error, so that a script knows."""
    if as_json:
        click.echo(json.dumps(findings.as_json(_switch), indent=1))
    else:
        for finding in findings:
            click.echo(finding.line(_switch))
        click.echo(findings.summary())
    if findings.worst == "error":
        sys.exit(1)


def _switch(setting: str) -> str:
    """The option that sets a parameter of the library: `tensor_type` is `--tensor-type`."""
    return f"--{setting.replace('_', '-')}"
