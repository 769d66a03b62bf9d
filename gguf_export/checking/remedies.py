"""Remedies that several checks of a GGUF file give."""

from __future__ import annotations

__all__ = ["AGAIN", "FETCH", "MAKE"]

MAKE = "make the file again"
AGAIN = "convert the checkpoint again"
FETCH = f"fetch the file again, or {AGAIN}"
