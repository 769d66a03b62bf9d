"""Numbers become blocks: checkpoints, block formats, recipes, error measures.

`quantize.encode` and `quantize.decode` are what most callers want, with a `quantize.Guide` where importances are known;
types are given by name ("Q4_K"). Everything else is in the modules.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from quantize.codec import decode, encode
    from quantize.guide import Guide

__all__ = ["Guide", "decode", "encode"]


def __getattr__(name: str) -> Any:
    # Loaded when they are asked for: the command line must not wait for numba to say how it is used.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("quantize.guide" if name == "Guide" else "quantize.codec"), name)
