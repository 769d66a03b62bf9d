"""Models of the Hugging Face Hub given by their names: folders stand in for them, in the cache of this program.

What a folder stands for is told by a file beside it, and only in this cache: no folder of a stranger can make it ask
an address. Whatever asks the Hub is imported when it is needed.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from quantize.containers.hub_names import hub_name
from quantize.containers.untrusted import read_json
from quantize.sources.shard_reader import ShardReader

__all__ = ["MARK", "hub_cache", "local_path", "name_of", "reader_of"]

MARK = "source.json"
"""The file beside a folder that tells which model and files it stands for."""


def local_path(path: Path | str, *, keep: bool = False) -> Path:
    """The path itself, or the folder that stands in for a model of the Hub, which is made where there is none.

    Args:
        path: of a folder or file, or the name of a model on the Hub (`hub_name`).
        keep: download the shards as well, to the Hub's own cache, each held against its SHA-256.

    Raises:
        CheckpointError: the path names a model of the Hub that cannot be had, or none that is stored as safetensors.
    """
    name = hub_name(path)
    if name is None:
        return Path(path)
    from quantize.sources.hub_folder import folder_of  # noqa: PLC0415 - the Hub's client, for its models only

    return folder_of(name, keep=keep)


def hub_cache() -> Path:
    """The folder under which folders stand for models."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base).absolute() / "moe-gguf" / "hub"


def reader_of(folder: Path) -> ShardReader:
    """What reads the shards of a folder."""
    told = _told(folder)
    if told is None:
        return ShardReader()
    from quantize.sources.hub_reader import HubReader  # noqa: PLC0415 - the Hub's client, for its models only

    return HubReader(told)


def name_of(folder: Path) -> str | None:
    """The model that a folder stands for, with its commit, as any machine can open it; None for other folders."""
    told = _told(folder)
    return None if told is None else f"hf://{told['repo']}@{told['commit']}"


def _told(folder: Path) -> dict[str, Any] | None:
    """What the file beside a folder of the cache says; None where the folder stands for nothing."""
    place = folder.absolute().parent
    if not place.is_relative_to(hub_cache()) or not (place / MARK).exists():
        return None
    told: dict[str, Any] = read_json(place / MARK)
    return told
