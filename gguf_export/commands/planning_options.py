"""The options of a choice of types: the budget, what may be chosen, and how the choice is judged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import click

from gguf_export.commands.completion import file_type_names, tensor_type_names
from gguf_export.commands.verb import Decorator, group, option

BUDGET = ("like", "size", "bpw")
"""The parameters that bring a budget."""


@dataclass(frozen=True)
class PlanningOptions:
    """A budget of bytes, and how types are chosen under it."""

    like: str | None
    size: str | None
    bpw: float | None
    candidates: tuple[str, ...]
    n_token: int
    n_measured: int
    no_measure: bool

    @property
    def is_given(self) -> bool:
        """Whether there is a budget."""
        return any(getattr(self, name) is not None for name in BUDGET)

    def settings(self) -> dict[str, Any]:
        """The arguments of the library.

        Raises:
            UsageError: there is no budget, or more than one.
        """
        given = [name for name in BUDGET if getattr(self, name) is not None]
        if len(given) != 1:
            raise click.UsageError("give one of --like, --size and --bpw")
        return {name: getattr(self, name) for name in (*BUDGET, "candidates", "n_token")} | {
            "n_held_out": 0 if self.no_measure else self.n_measured
        }


def planning_options(letter: Sequence[str] = (), needs: Sequence[str] = ()) -> Decorator:
    """`planning: PlanningOptions`; `letter` is a short switch of the candidates, where the verb has it free."""
    return group(
        "planning",
        PlanningOptions,
        option(
            "--like",
            metavar="TYPE",
            shell_complete=file_type_names,
            help="Take as many bytes as this file type, such as Q4_K_M, would.",
        ),
        option("--size", metavar="SIZE", help="Take so many bytes for the whole file: 13.5GiB, 14.2GB."),
        option(
            "--bpw",
            type=click.FloatRange(min=0, min_open=True),
            metavar="N",
            help="Take so many bits per weight, all tensors together.",
        ),
        option(
            *letter,
            "--candidates",
            multiple=True,
            metavar="TYPE",
            needs=needs,
            shell_complete=tensor_type_names,
            help="A tensor type that may be chosen; may be repeated.  [default: Q2_K to Q6_K, IQ4_XS and Q8_0]",
        ),
        option(
            "--cost-tokens",
            "n_token",
            type=click.IntRange(min=1),
            default=4096,
            show_default=True,
            metavar="N",
            needs=needs,
            help="Tokens of the text on which the cost of each type is measured.",
        ),
        option(
            "--measure",
            "n_measured",
            type=click.IntRange(min=0),
            default=8,
            show_default=True,
            metavar="N",
            needs=needs,
            help="Hold N chunks of the text out, a fifth at most, to measure on what was predicted.",
        ),
        option(
            "--no-measure",
            is_flag=True,
            needs=needs,
            help="Predict only: nothing is held out, and the prediction is not scaled.",
        ),
    )
