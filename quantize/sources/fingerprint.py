"""A short text that stands for some bytes: what tells one model from another without comparing weights."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

__all__ = ["hashed"]


def hashed(parts: Iterable[bytes]) -> str:
    """A hash of some bytes, and of where one part ends and the next begins."""
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()
