"""The options of llama-quantize, in its spelling: types of tensors, importances that weigh, layers that stay."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gguf_export.commands.completion import tensor_type_names
from gguf_export.commands.options import FILE
from gguf_export.commands.verb import Decorator, group, option

if TYPE_CHECKING:
    from quantize.recipes.recipe import Recipe


@dataclass(frozen=True)
class RecipeOptions:
    """The switches of llama-quantize that change tensor types, in its spelling."""

    tensor_types: tuple[str, ...]
    tensor_type_file: Path | None
    output_tensor_type: str | None
    token_embedding_type: str | None
    pure: bool
    leave_output_tensor: bool

    @property
    def is_given(self) -> bool:
        """Whether there is any of them."""
        return any(value not in ((), None, False) for value in vars(self).values())

    def recipes(self, types: Sequence[str]) -> list[Recipe]:
        """One recipe for each file type.

        Raises:
            RecipeError: a type or an expression that cannot be applied, a file that cannot be read.
        """
        from quantize.recipes.ftypes import ftype
        from quantize.recipes.recipe import Recipe
        from quantize.recipes.tensor_types import parse_qtype, parse_tensor_type, read_tensor_types

        tensor_types = [parse_tensor_type(text) for text in self.tensor_types]
        if self.tensor_type_file:
            tensor_types += read_tensor_types(self.tensor_type_file)
        output, embedding = self.output_tensor_type, self.token_embedding_type
        return [
            Recipe(
                ftype(name),
                tensor_types=tuple(tensor_types),
                output_tensor_type=parse_qtype(output) if output else None,
                token_embedding_type=parse_qtype(embedding) if embedding else None,
                pure=self.pure,
                leave_output_tensor=self.leave_output_tensor,
            )
            for name in types
        ]


def recipe_options(needs: Sequence[str] = ()) -> Decorator:
    """`recipe: RecipeOptions`."""
    return group(
        "recipe",
        RecipeOptions,
        option(
            "--tensor-type",
            "tensor_types",
            multiple=True,
            metavar="PATTERN=TYPE",
            needs=needs,
            help="Type of the tensors whose name the regular expression finds; the first that matches counts.",
        ),
        option(
            "--tensor-type-file",
            type=FILE,
            metavar="FILE",
            needs=needs,
            help="A file of PATTERN=TYPE entries, as llama-quantize reads it.",
        ),
        option(
            "--output-tensor-type",
            metavar="TYPE",
            needs=needs,
            shell_complete=tensor_type_names,
            help="Type of output.weight.",
        ),
        option(
            "--token-embedding-type",
            metavar="TYPE",
            needs=needs,
            shell_complete=tensor_type_names,
            help="Type of token_embd.weight.",
        ),
        option("--pure", is_flag=True, needs=needs, help="One type for all quantized tensors, no mixture."),
        option(
            "--leave-output-tensor", is_flag=True, needs=needs, help="Keep output.weight as it is stored."
        ),
    )


@dataclass(frozen=True)
class SourceOptions:
    """What of the model and of its importances is used."""

    include_weights: tuple[str, ...]
    exclude_weights: tuple[str, ...]
    prune_layers: tuple[str, ...]
    allow_requantize: bool

    def settings(self) -> dict[str, Any]:
        """The arguments of the library.

        Raises:
            UsageError: both kinds of choice among the importances.
            RecipeError: a layer that is no number.
        """
        from quantize.recipes.pruning import parse_layers

        if self.include_weights and self.exclude_weights:
            raise click.UsageError("give --include-weights or --exclude-weights, not both")
        layers = {bid for text in self.prune_layers for bid in parse_layers(text)}
        return {**vars(self), "prune_layers": sorted(layers)}


def source_options(importances: Sequence[str]) -> Decorator:
    """`taken: SourceOptions`; `importances` are the parameters that bring importances."""
    return group(
        "taken",
        SourceOptions,
        option(
            "--include-weights",
            multiple=True,
            metavar="NAME",
            needs=importances,
            help="Use importances only of tensors with NAME in their name; may be repeated.",
        ),
        option(
            "--exclude-weights",
            multiple=True,
            metavar="NAME",
            needs=importances,
            help="Use no importances of tensors with NAME in their name; may be repeated.",
        ),
        option(
            "--prune-layers",
            multiple=True,
            metavar="L0,L1,...",
            help="Leave layers out; those behind them get new numbers.",
        ),
        option(
            "--allow-requantize",
            is_flag=True,
            help="Quantize again what a GGUF file holds quantized: it loses twice.",
        ),
    )
