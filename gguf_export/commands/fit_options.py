"""The options of `inspect --fit`: cards, contexts, and what else decides what fits."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import click

from gguf_export.commands.options import ftypes
from gguf_export.commands.verb import group, option

__all__ = ["FIT", "FitOptions", "fit_options", "gib_sizes"]

FIT = ("vram", "contexts", "ram", "types", "cache_type", "as_json")
"""The parameters that --fit takes."""


def gib_sizes(_ctx: click.Context, _param: click.Parameter, values: tuple[str, ...]) -> list[float]:
    """Sizes with commas between them, in GiB."""
    return [_number(word, r"\d{1,6}(\.\d{1,6})?", "a number of GiB such as 24") for word in _words(values)]


def _tokens(_ctx: click.Context, _param: click.Parameter, values: tuple[str, ...]) -> list[int]:
    """Numbers of tokens with commas between them; 4k are 4096."""
    found = []
    for word in _words(values):
        number = _number(word.lower().removesuffix("k"), r"\d{1,9}", "a number of tokens such as 4096 or 32k")
        found.append(int(number) * (1024 if word.lower().endswith("k") else 1))
    return found


def _words(values: tuple[str, ...]) -> list[str]:
    return [word.strip() for value in values for word in value.split(",")]


def _number(word: str, pattern: str, what: str) -> float:
    if not re.fullmatch(pattern, word, re.ASCII) or not float(word):
        raise click.BadParameter(f"{word!r} is not {what}; several have commas between them")
    return float(word)


@dataclass(frozen=True)
class FitOptions:
    """Whether it is asked what fits, and what."""

    fit: bool
    vram: list[float]
    contexts: list[int]
    ram: float | None
    cache_type: str
    types: tuple[str, ...]

    def settings(self) -> dict[str, Any]:
        """The arguments of the library; what is not given has its default there."""
        return {name: value for name, value in vars(self).items() if value and name != "fit"}


fit_options = group(
    "fitting",
    FitOptions,
    option("--fit", is_flag=True, help="What fits which graphics card, with llama.cpp."),
    option(
        "--vram",
        multiple=True,
        callback=gib_sizes,
        metavar="GIB,...",
        needs=("fit",),
        help="Memory of the cards.  [default: 8,12,16,24]",
    ),
    option(
        "--ctx",
        "contexts",
        multiple=True,
        callback=_tokens,
        metavar="N,...",
        needs=("fit",),
        help="Tokens of context.  [default: 4k,8k,32k]",
    ),
    option(
        "--ram",
        type=click.FloatRange(min=0, min_open=True),
        metavar="GIB",
        needs=("fit",),
        help="Main memory that experts may take where a GPU has no room for them.  [default: 32]",
    ),
    option(
        "--cache-type",
        type=click.Choice(["f16", "q8_0"]),
        default="f16",
        show_default=True,
        needs=("fit",),
        help="Type of the keys and values of the context.",
    ),
    ftypes(
        "File type whose size is computed for a checkpoint; may be repeated.  [default: Q8_0 to Q2_K]",
        needs=("fit",),
    ),
)
"""`fitting: FitOptions`."""
