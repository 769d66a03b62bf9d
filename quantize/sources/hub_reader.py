"""Numbers out of the shards of a model on the Hugging Face Hub."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from quantize.containers.hub_names import HubName
from quantize.sources.fingerprint import SeenFiles
from quantize.sources.ranges import AT_ONCE, HubFile, Ranges
from quantize.sources.shard_reader import ShardReader
from quantize.tensors import Array

__all__ = ["HubReader"]


class HubReader(ShardReader):
    """Reads weights from the Hub, or from its cache where a folder links to that."""

    n_read = AT_ONCE

    def __init__(self, told: Mapping[str, Any]) -> None:
        """Take what is told beside the folder: of which model, and of which files."""
        super().__init__()
        owner, _, name = told["repo"].partition("/")
        self._ranges = Ranges(HubName(owner, name, told["commit"]))
        files = (HubFile(**file) for file in told["files"])
        self._files = {file.name: file for file in files if file.name.endswith(".safetensors")}

    def fill(self, values: Array, path: Path, start: int, shards: SeenFiles) -> None:
        """See `ShardReader`."""
        if path.is_symlink():
            super().fill(values, path, start, shards)
            return
        self._ranges.read(self._files[path.name], start, values.data.cast("B"))
        with self._lock:
            self.bytes_read += values.nbytes

    def identity(self, shards: SeenFiles) -> Iterable[bytes]:
        """The shards as the Hub tells of their content: the same wherever and whenever they are read."""
        known = sorted((file.name, file.size, file.sha256 or file.url) for file in self._files.values())
        return [json.dumps(known).encode()]
