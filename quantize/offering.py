"""The names that a package offers, imported when they are asked for: `--help` must not wait for numba or torch."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any


def offered(package: str, modules: Mapping[str, str], name: str) -> Any:
    """The object called `name` in the module that `modules` says.

    Raises:
        AttributeError: the package offers no such name.
    """
    if name not in modules:
        raise AttributeError(f"module {package!r} has no attribute {name!r}")
    return getattr(import_module(modules[name]), name)
