"""Ground floor: numbers become blocks. Checkpoints and GGUF files are read, types are chosen, matrices are encoded.

Offered are `encode` and `decode` of one matrix; other names may change without a word in the changelog. Nothing here
knows a text, writes a file or imports torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from quantize.offering import offered

if TYPE_CHECKING:
    from quantize.codec import decode, encode
    from quantize.guide import Guide

__all__ = ["Guide", "decode", "encode"]

_MODULES = {"Guide": "quantize.guide", "decode": "quantize.codec", "encode": "quantize.codec"}


def __getattr__(name: str) -> Any:
    return offered(__name__, _MODULES, name)


def __dir__() -> list[str]:
    return sorted(__all__)
