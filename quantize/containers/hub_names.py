"""Names of models on the Hugging Face Hub, given where a path is expected."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

__all__ = ["HubName", "hub_name"]

SCHEME = re.compile(r"hf:/+")  # a Path keeps one slash
ADDRESS = re.compile(r"https?:/+(?:www\.)?(?:huggingface\.co|hf\.co)/")
NAME = re.compile(
    r"([A-Za-z0-9][\w.-]{0,95})/([A-Za-z0-9][\w.-]{0,95})(?:@([A-Za-z0-9][\w./-]{0,127}))?", re.ASCII
)
FILES = (".gguf", ".safetensors", ".json", ".bin", ".dat", ".txt")
"""Endings that no name of a model has."""


@dataclass(frozen=True)
class HubName:
    """A model on the Hub; `revision` is a branch, a tag or a commit, None for the branch that the Hub shows."""

    owner: str
    name: str
    revision: str | None = None

    @property
    def repo(self) -> str:
        """As the Hub calls it."""
        return f"{self.owner}/{self.name}"

    def __str__(self) -> str:
        return self.repo if self.revision is None else f"{self.repo}@{self.revision}"


def hub_name(path: Path | str) -> HubName | None:
    """The model that `owner/name`, `hf://owner/name@revision` or an address of the Hub names, None for anything else.

    What exists on the disk is what it is there, unless it is spelled with `hf:`.
    """
    text = str(path)
    start = SCHEME.match(text) or ADDRESS.match(text)
    name = NAME.fullmatch(text[start.end() :] if start else text)
    if name is None or text.endswith(FILES):
        return None
    if start is None and os.path.lexists(path):
        return None
    return HubName(*name.groups())
