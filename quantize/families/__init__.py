"""Model families, one declarative file each; Hugging Face names exist nowhere else.

A family is data in the words of `language` and `keys`; code that reads a checkpoint or a file never asks which it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import cache
from importlib import import_module
from typing import Any

from quantize.containers.untrusted import quoted
from quantize.exceptions import CheckpointError
from quantize.families.graph import Graph
from quantize.families.key_table import KNOWN
from quantize.families.keys import Key
from quantize.families.language import Family

__all__ = [
    "FAMILIES",
    "Family",
    "families_of",
    "family_of",
    "graph_of",
    "known_archs",
    "known_keys",
    "supported_architectures",
]

FAMILIES = (
    *("llama", "mistral", "mixtral"),
    *("qwen2", "qwen3", "qwen2moe", "qwen3moe", "olmoe"),
    *("deepseek2", "deepseek3", "glm4moe", "glm4moelite"),
    *("minimax_m2", "ernie4_5", "ernie4_5_moe", "hunyuan_moe", "bailingmoe", "bailingmoe2"),
    *("dbrx", "granitemoe", "phimoe", "gpt_oss", "qwen3next"),
)
"""The modules of this package that offer `FAMILY: Family`."""


def family_of(config: Mapping[str, Any]) -> Family:
    """The family of a config.json, chosen by `architectures[0]` as llama.cpp's converter does.

    Raises:
        CheckpointError: no architecture is named, or none that is declared here.
    """
    named = config.get("architectures")
    if isinstance(named, list) and named:
        for family in _families():  # imported one by one
            if named[0] in family.architectures:
                return family
    supported = f"supported: {', '.join(supported_architectures())}"
    if not isinstance(named, list) or not named:
        raise CheckpointError("config.json", "names no architecture", supported)
    whole = str(named[0]).removesuffix("Model") + "ForCausalLM"
    if str(named[0]).endswith("Model") and whole in supported_architectures():
        message = f"architecture {quoted(named[0])} is the base class, saved without its head"
        raise CheckpointError("config.json", message, f"save the whole model, {whole}")
    raise CheckpointError("config.json", f"architecture {quoted(named[0])} is not supported", supported)


def families_of(arch: str) -> list[Family]:
    """The families whose files are of one `general.architecture`; there may be none, or several."""
    return [family for family in _families() if family.arch == arch]


def graph_of(arch: str) -> Graph | None:
    """What llama.cpp's graph of an architecture does; None where no family here has it."""
    return next((family.graph for family in families_of(arch)), None)


def known_keys(arch: str) -> dict[str, Key]:
    """The `{arch}.*` keys by name: those of its families, and those that any architecture may have.

    What no family of an architecture has, its files need not have either: layer norms have another epsilon.
    """
    own = {row.name: row for family in families_of(arch) for row in family.keys}
    return {**{name: replace(row, optional=bool(own) or row.optional) for name, row in KNOWN.items()}, **own}


def known_archs() -> list[str]:
    """Each `general.architecture` of which a family is declared here."""
    return sorted({family.arch for family in _families()})


def supported_architectures() -> list[str]:
    """The classes of transformers that can be read."""
    return [name for family in _families() for name in family.architectures]


def _families() -> Iterable[Family]:
    return map(_family, FAMILIES)


@cache
def _family(name: str) -> Family:
    family: Family = import_module(f"quantize.families.{name}").FAMILY
    return family
