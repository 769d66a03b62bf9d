"""`moe-gguf inspect`: what is in a checkpoint, a GGUF file or an importance matrix."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from gguf_export.commands.fit_options import FIT, FitOptions, fit_options
from gguf_export.commands.options import FILE
from gguf_export.commands.streams import show, show_json
from gguf_export.commands.verb import Verb, option

if TYPE_CHECKING:
    from gguf_export.checking.imatrix_facts import ImatrixFacts

FIGURES = (">Σ(Act²)", ">min", ">max", ">μ", ">σ", ">% active", ">N", ">entropy", ">E (norm)", ">ZD")  # noqa: RUF001
"""The figures of llama-imatrix, under its names."""
MOST_STARVED = 24
"""Experts that are listed without being asked for."""


@click.command(cls=Verb, modes={"fit": FIT})
@click.argument("path", type=FILE)
@option("--json", "as_json", is_flag=True, help="Everything, as JSON for programs.")
@option(
    "--tensors",
    is_flag=True,
    help="One line for each tensor, too; of an importance matrix also for each expert.",
)
@fit_options
def inspect(path: Path, as_json: bool, tensors: bool, fitting: FitOptions) -> None:
    """Say what PATH is: a checkpoint folder or a GGUF file; its architecture, experts, types, sizes.

    Of an importance matrix: the figures of llama-imatrix --show-statistics, and the experts that few tokens reached.

    With --fit: what the files of a folder, or the file types of a checkpoint, take on a graphics card, and which is the
    largest that fits.
    """
    if fitting.fit:
        _print_fit(path, fitting, as_json)
        return
    from gguf_export.checking import inspect as checking

    facts = checking.inspect(path)
    if as_json:
        show_json(facts.as_dict())
        return
    from gguf_export.checking.imatrix_facts import ImatrixFacts
    from gguf_export.commands.console import print_table
    from gguf_export.files.sizes import size_in_words

    if isinstance(facts, ImatrixFacts):
        _print_imatrix(facts, tensors)
        return
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


def _print_fit(path: Path, fitting: FitOptions, as_json: bool) -> None:
    from gguf_export.checking.fit import fit

    found = fit(path, **fitting.settings())
    if as_json:
        show_json(found.as_dict())
        return
    from gguf_export.commands.console import print_table
    from gguf_export.reports.fit_tables import assumptions, choices_table, needs_table

    print_table(str(path), *needs_table(found))
    print_table("the largest file that fits", *choices_table(found))
    for line in assumptions(found):
        show(line)


def _print_imatrix(facts: ImatrixFacts, tensors: bool) -> None:
    from gguf_export.checking import imatrix_facts as words
    from gguf_export.commands.console import print_table

    print_table(facts.path, ("", ""), words.imatrix_in_words(facts))
    starved = words.starved_rows(facts)
    if starved:
        more = "" if len(starved) <= MOST_STARVED else f", the first {MOST_STARVED} of {len(starved):,}"
        print_table(f"starved experts{more}", ("", ">expert", ">tokens"), starved[:MOST_STARVED])
    print_table(
        "means over the tensors of a layer",
        (">layer", ">Σ(Act²)", ">ZD", ">CosSim"),
        words.layer_rows(facts),
    )
    if tensors:
        print_table("", (">layer", "tensor", *FIGURES, ">CosSim"), words.tensor_rows(facts))
        experts = words.expert_rows(facts)
        if experts:
            print_table("", (">layer", "tensor", ">expert", ">tokens", *FIGURES), experts)
