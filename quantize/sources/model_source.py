"""What a model is to whoever reads it, and how one is opened."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Protocol

from quantize.containers.keys import KeyValue
from quantize.sources.checkpoint import Checkpoint, open_checkpoint
from quantize.sources.gguf_file import GGUFFile
from quantize.tensors import Array, Rows, TensorSource, TensorSpec

__all__ = ["Kind", "ModelSource", "open_source"]

Kind = Literal["checkpoint", "gguf", "round trip"]


class ModelSource(TensorSource, Protocol):
    """A model: its tensors, and what is said of it as a whole. Whoever has one never asks for its class."""

    @property
    def label(self) -> str:
        """What messages call it: the path, where it has one."""
        ...

    @property
    def kind(self) -> Kind:
        """Where the weights come from."""
        ...

    @property
    def bytes_read(self) -> int:
        """Bytes of weights read so far, by all threads."""
        ...

    def arch_keys(self) -> Sequence[KeyValue]:
        """The `{arch}.*` keys: a file's own, or those that its family makes of config.json."""
        ...

    def fingerprint(self) -> str:
        """What changes when the model does: of files their sizes and times, and what lies where in them.

        No weight is read. An earlier run may be continued where the fingerprint is the same.

        Raises:
            MoeGgufError: a file cannot be read any more.
        """
        ...

    def read_blocks(self, spec: TensorSpec, xid: int = 0, rows: Rows | None = None) -> Array:
        """The bytes of what `read` gives, as they are stored: uint8 [n_rows, spec.row_bytes]."""
        ...

    def row_step(self, spec: TensorSpec) -> int:
        """Ranges of rows between multiples of this number are read without reading anything else; it divides n_row."""
        ...


def open_source(path: Path | str) -> Checkpoint | GGUFFile:
    """The checkpoint in a folder, or a finished GGUF file; no weight is read.

    Raises:
        CheckpointError: the folder cannot be read, or there is nothing at that path.
        GGUFError: the file cannot be read, or is one of several parts.
    """
    if Path(path).is_file():
        file = GGUFFile(path)
        file.refuse_part()
        return file
    return open_checkpoint(path)
