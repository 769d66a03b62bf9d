"""Model families, one declarative file each; Hugging Face names exist nowhere else."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib import import_module
from typing import Any

from quantize.containers.untrusted import quoted
from quantize.exceptions import CheckpointError
from quantize.families.language import Family

__all__ = ["FAMILIES", "Family", "family_of", "supported_architectures"]

FAMILIES = ("llama", "mistral", "mixtral")
"""The modules of this package that offer `FAMILY: Family`."""


def family_of(config: Mapping[str, Any]) -> Family:
    """The family of a config.json, chosen by `architectures[0]` as llama.cpp's converter does.

    Raises:
        CheckpointError: no architecture is named, or none that is declared here.
    """
    named = config.get("architectures")
    supported = ", ".join(supported_architectures())
    if not isinstance(named, list) or not named:
        raise CheckpointError(f"config.json: names no architecture; supported: {supported}")
    for family in _families():
        if named[0] in family.architectures:
            return family
    raise CheckpointError(
        f"config.json: architecture {quoted(named[0])} is not supported; supported: {supported}"
    )


def supported_architectures() -> list[str]:
    """The classes of transformers that can be read."""
    return [name for family in _families() for name in family.architectures]


@cache
def _families() -> tuple[Family, ...]:
    return tuple(import_module(f"quantize.families.{name}").FAMILY for name in FAMILIES)
