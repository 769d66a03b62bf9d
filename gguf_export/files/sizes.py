"""Numbers of bytes as a person reads them."""

from __future__ import annotations

__all__ = ["size_in_words"]


def size_in_words(n_bytes: float) -> str:
    """A size in binary units, as llama.cpp prints them: "512 B", "1.50 KiB", "10.14 MiB", "3.25 GiB"."""
    for unit in ("B", "KiB", "MiB"):
        if n_bytes < 1024:
            return f"{n_bytes:.0f} {unit}" if unit == "B" else f"{n_bytes:.2f} {unit}"
        n_bytes /= 1024
    return f"{n_bytes:.2f} GiB"
