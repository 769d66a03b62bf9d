"""`moe-gguf inspect`: what is in a checkpoint or a GGUF file."""

from __future__ import annotations

from pathlib import Path

import click

from gguf_export.commands.options import FILE
from gguf_export.commands.streams import show_json
from gguf_export.commands.verb import Verb, option


@click.command(cls=Verb)
@click.argument("path", type=FILE)
@option("--json", "as_json", is_flag=True, help="Everything, as JSON for programs.")
@option("--tensors", is_flag=True, help="One line for each tensor, too.")
def inspect(path: Path, as_json: bool, tensors: bool) -> None:
    """Say what PATH is: a checkpoint folder or a GGUF file; its architecture, experts, types, sizes."""
    from gguf_export.checking import inspect as checking

    facts = checking.inspect(path)
    if as_json:
        show_json(facts.as_dict())
        return
    from gguf_export.commands.console import print_table
    from gguf_export.files.sizes import size_in_words

    print_table(str(path), ("", ""), checking.in_words(facts))
    print_table(
        "",
        ("type", ">tensors", ">weights", ">size"),
        [
            (row.qtype, str(row.n_tensors), f"{row.n_elements:,}", size_in_words(row.n_bytes))
            for row in facts.types
        ],
    )
    if tensors:
        print_table(
            "",
            ("tensor", ">shape", "type", ">size"),
            [
                (tensor.name, " x ".join(map(str, tensor.shape)), tensor.qtype, size_in_words(tensor.n_bytes))
                for tensor in facts.tensors
            ],
        )
