"""Reading JSON whose values may be of any type: a value of another type than expected counts as absent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["objects", "section", "token_text"]


def section(mapping: Mapping[str, Any], key: str) -> dict[str, Any]:
    """The object under a key of a JSON object; an empty one where there is something else."""
    value = mapping.get(key)
    return value if isinstance(value, dict) else {}


def objects(values: object) -> list[dict[str, Any]]:
    """The objects among the values of a JSON list; none where `values` is no list."""
    return [value for value in values if isinstance(value, dict)] if isinstance(values, list) else []


def token_text(entry: object) -> str | None:
    """The text of a token, which JSON files write as text or as an object with `content`; None where it has none."""
    content = entry.get("content") if isinstance(entry, dict) else entry
    return content if isinstance(content, str) and content else None
