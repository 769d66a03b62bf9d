"""Blocks become a file: metadata, the GGUF writer, exports and the command line.

`gguf_export.export` is the whole job as one call; everything else is in the modules.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gguf_export.writing.export import ExportResult, export

__all__ = ["ExportResult", "export"]


def __getattr__(name: str) -> Any:
    # Loaded when they are asked for: the command line must not wait for numba to say how it is used.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("gguf_export.writing.export"), name)
