"""Names of models on the Hugging Face Hub, given where a path is expected: how to download them is said, not done."""

from __future__ import annotations

import os
import re
from pathlib import Path

from quantize.exceptions import MoeGgufError

__all__ = ["refuse_hub_name"]

ADDRESS = re.compile(r"https?:/+(?:www\.)?(?:huggingface\.co|hf\.co)/")
NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/([A-Za-z0-9][\w.-]{0,95})", re.ASCII)
FILES = (".gguf", ".safetensors", ".json", ".bin", ".dat", ".txt")
"""Endings that no name of a model has."""


def refuse_hub_name(path: Path | str, error: type[MoeGgufError]) -> None:
    """Refuse a path under which there is nothing, if it could be the `owner/name` of a model, or its address.

    Raises:
        error: it could be; the remedy is the command that downloads the model.
    """
    text = str(path)
    address = ADDRESS.match(text)
    plain = text[address.end() :] if address else text
    name = NAME.fullmatch(plain)
    if name is None or plain.endswith(FILES) or os.path.lexists(path):
        return
    remedy = f"a model of the Hugging Face Hub is downloaded by: hf download {plain} --local-dir {name[1]}"
    raise error(text, "no such file or folder", remedy)
