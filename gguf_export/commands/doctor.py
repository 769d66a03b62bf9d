"""`moe-gguf doctor`: what is wrong with a checkpoint, before hours of work."""

from __future__ import annotations

from pathlib import Path

import click

from gguf_export.commands.options import JSON, MODEL, PRE, QUIET
from gguf_export.commands.verb import Verb, option


@click.command(cls=Verb)
@MODEL
@option("--full", is_flag=True, help="Read all weights, not a sample.")
@PRE
@JSON
@QUIET
def doctor(model: Path, full: bool, pre: str | None, as_json: bool, quiet: bool) -> None:
    """Say what is wrong with the checkpoint in folder MODEL, before hours of work.

    Its chat template is applied to dialogues as llama.cpp would, and by llama.cpp itself where xllamacpp is installed;
    of a GGUF file that is all (verify looks at its tensors).

    The exit status is 1 where an error is found; warnings leave it 0.
    """
    from gguf_export.checking import doctor as checking
    from gguf_export.commands.console import ProgressView
    from gguf_export.commands.messages import show_findings

    with ProgressView(quiet=quiet) as view:
        findings = checking.doctor(model, full=full, pre=pre, progress=view)
    show_findings(findings, as_json)
