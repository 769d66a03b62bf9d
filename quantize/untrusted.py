"""Reading what strangers wrote: JSON of bounded size, and names that are safe to print in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from quantize.exceptions import CheckpointError, MoeGgufError

__all__ = ["F32_MAX", "MAX_JSON_BYTES", "parse_json", "quoted", "read_json", "regular_size"]

MAX_JSON_BYTES = 100_000_000  # bytes; the limit of the safetensors library for a header
MAX_QUOTED = 160  # characters
F32_MAX = (
    3.4028234663852886e38  # what is larger has no place in a GGUF file, nor, as a whole number, in a float
)


def quoted(text: object) -> str:
    """What a file says, fit for a message of one line: names in quotes, control characters escaped, length cut."""
    shown = ascii(text) if isinstance(text, str) else ascii(str(text))[1:-1]
    return shown if len(shown) <= MAX_QUOTED else f"{shown[:MAX_QUOTED]}..."


def regular_size(path: Path, error: type[MoeGgufError] = CheckpointError) -> int:
    """Size in bytes of a regular file (symbolic links are followed, as the cache of the Hugging Face hub needs it).

    Raises:
        error: there is no such file, or it is a folder, a pipe or a device, which could block or never end.
    """
    try:
        if not path.is_file():
            raise error(f"{path}: {'not a regular file' if path.exists() else 'file is missing'}")
        return path.stat().st_size
    except OSError as failure:  # a name that is too long, a loop of links, a folder that may not be entered
        raise error(f"{path}: {failure.strerror or 'cannot be read'}") from None


def read_json(
    path: Path, error: type[MoeGgufError] = CheckpointError, unique: bool = False
) -> dict[str, Any]:
    """The JSON object that a file holds; `unique` refuses objects in which a key stands twice.

    Raises:
        error: the file is missing, unreadable, larger than `MAX_JSON_BYTES`, or holds no JSON object.
    """
    size = regular_size(path, error)
    if size > MAX_JSON_BYTES:
        raise error(f"{path}: {size} bytes are too many for a JSON file, the limit is {MAX_JSON_BYTES}")
    try:
        with path.open("rb") as file:
            content = file.read(size)  # never more: as much as is asked for is allocated at once
    except OSError as failure:
        raise error(f"{path}: cannot be read: {failure.strerror}") from None
    return parse_json(content, str(path), error, unique)


def parse_json(content: bytes, where: str, error: type[MoeGgufError], unique: bool = False) -> dict[str, Any]:
    """The JSON object in `content`; `where` names its place in messages.

    Raises:
        error: it is not JSON (NaN and Infinity are not), not an object, nested without end, or has double keys.
    """
    try:
        found = json.loads(
            content.decode("utf-8"),
            object_pairs_hook=_unique_object if unique else None,
            parse_constant=_refuse_constant,
        )
    except RecursionError:
        raise error(f"{where}: invalid JSON: nested too deeply") from None
    except ValueError as failure:  # JSONDecodeError, UnicodeDecodeError, numbers of thousands of digits
        raise error(f"{where}: invalid JSON: {_one_line(failure)}") from None
    if not isinstance(found, dict):
        raise error(f"{where}: invalid content: a JSON object is expected, not {type(found).__name__}")
    return found


def _unique_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"key {quoted(key)} stands twice in one object")
        found[key] = value
    return found


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")


def _one_line(failure: Exception) -> str:
    return ascii(str(failure)[:MAX_QUOTED])[1:-1]
