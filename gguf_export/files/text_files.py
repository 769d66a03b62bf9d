"""The small files beside the weights (JSON, templates, the model card), as a stranger's folder may hold them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from quantize.containers.untrusted import read_bytes, read_json
from quantize.exceptions import TokenizerError

__all__ = ["optional_object", "optional_text"]

MAX_TEXT_BYTES = 16 * 2**20  # of a template or a model card


def optional_object(path: Path) -> dict[str, Any] | None:
    """The JSON object in `path`, None where there is no such file.

    Raises:
        TokenizerError: the file cannot be read, or holds anything but a JSON object.
    """
    if not _is_there(path):
        return None
    return read_json(path, TokenizerError)


def optional_text(path: Path) -> str | None:
    """The text in `path`, None where there is no such file.

    Raises:
        TokenizerError: the file cannot be read, is larger than `MAX_TEXT_BYTES`, or is not UTF-8.
    """
    if not _is_there(path):
        return None
    content = read_bytes(path, MAX_TEXT_BYTES, TokenizerError)
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as failure:
        raise TokenizerError(str(path), f"is not UTF-8 text (byte {failure.start})") from None


def _is_there(path: Path) -> bool:
    try:
        return path.exists() or path.is_symlink()  # a link to nowhere is a fault to be told, not an absence
    except OSError:
        return True  # reading it will say why
