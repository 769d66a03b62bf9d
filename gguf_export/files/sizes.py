"""Sizes in words, the same wherever a person reads them."""

from __future__ import annotations

__all__ = ["size_in_words"]


def size_in_words(n_bytes: float, gib_places: int = 2) -> str:
    """Write a number of bytes in binary units, as llama.cpp does: 512 B, 1.50 KiB, 3.25 MiB, 4.07 GiB.

    Args:
        n_bytes: a size, or a rate in bytes per second.
        gib_places: decimals of a size in GiB; tables that tell files of nearly one size apart take 3.
    """
    size = n_bytes
    if size < 1024:
        return f"{size:.0f} B"
    for unit in ("KiB", "MiB"):
        size /= 1024
        if size < 1024:
            return f"{size:.2f} {unit}"
    return f"{size / 1024:.{gib_places}f} GiB"
