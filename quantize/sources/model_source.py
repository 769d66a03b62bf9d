"""The interface of a model, and how one is opened."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Protocol

from quantize.containers.keys import KeyValue
from quantize.containers.untrusted import quoted
from quantize.decoding import can_decode
from quantize.exceptions import CheckpointError, DecodeError
from quantize.sources.checkpoint import Checkpoint, open_checkpoint
from quantize.sources.gguf_file import GGUFFile
from quantize.sources.hub import local_path
from quantize.tensors import Array, Rows, TensorSource, TensorSpec
from quantize.tracing import span

__all__ = ["Kind", "ModelFile", "ModelSource", "open_gguf", "open_source", "open_stored"]

Kind = Literal["checkpoint", "gguf", "round trip"]


class ModelSource(TensorSource, Protocol):
    """A model: its tensors, and the facts that are said of it as a whole. Whoever has one never asks for its class."""

    @property
    def label(self) -> str:
        """The name of the model in messages: its path, where it has one."""
        ...

    @property
    def kind(self) -> Kind:
        """The kind of place from which the weights come."""
        ...

    @property
    def bytes_read(self) -> int:
        """Bytes of weights read so far, by all threads."""
        ...

    def arch_keys(self) -> Sequence[KeyValue]:
        """The `{arch}.*` keys: a file's own, or those that its family makes of config.json."""
        ...

    def fingerprint(self) -> str:
        """A text that changes when the model's files do; an earlier run may be continued where it is the same.

        No weight is read but a few for samples.

        Raises:
            ModelChangedError: a file is no longer the one that was opened.
            MoeGgufError: a file cannot be read any more.
        """
        ...

    def refuse_changed(self) -> None:
        """Look at the model's files again: nothing gets its name that was made while they changed.

        Every read looks at its own file, so this finds what changed behind the last one.

        Raises:
            ModelChangedError: a file is no longer the one that was opened.
        """
        ...

    def read_blocks(self, spec: TensorSpec, xid: int = 0, rows: Rows | None = None) -> Array:
        """The bytes of what `read` gives, as they are stored: uint8 [n_rows, spec.row_bytes]."""
        ...

    def row_step(self, spec: TensorSpec) -> int:
        """Ranges of rows between multiples of this number are read without reading anything else; it divides n_row."""
        ...


ModelFile = Checkpoint | GGUFFile
"""A model as it lies on the disk, with its tokenizer and its keys."""


def open_source(path: Path | str) -> ModelFile:
    """The checkpoint in a folder or on the Hub, or a finished GGUF file (see `open_gguf`); no weight is read.

    Raises:
        CheckpointError: the folder cannot be read, or there is nothing at that path.
        GGUFError, DecodeError: see `open_gguf`.
    """
    return open_gguf(path) if Path(path).is_file() else open_stored(path)


def open_stored(path: Path | str) -> ModelFile:
    """The checkpoint in a folder or on the Hub, or a GGUF file of any types, which need not be decoded.

    Raises:
        CheckpointError: the folder cannot be read, or there is nothing at that path.
        GGUFError: the file cannot be read, is damaged, or is a later part.
    """
    if Path(path).is_file():
        with span("open model"):
            return GGUFFile(path)
    path = local_path(path)
    if not os.path.lexists(path):
        remedy = "give the folder of a Hugging Face checkpoint, or a GGUF file"
        raise CheckpointError(str(path), "no such file or folder", remedy)
    with span("open model"):
        return open_checkpoint(path)


def open_gguf(path: Path | str) -> GGUFFile:
    """A GGUF file, whole and of types that can be decoded.

    Raises:
        GGUFError: it cannot be read, is damaged, holds no weights, or is a later part of several.
        DecodeError: the type of a tensor cannot be decoded here.
    """
    with span("open model"):
        file = GGUFFile(path)
    file.refuse_empty()
    for spec in file.specs():
        if not can_decode(spec.qtype):
            raise DecodeError(
                f"{path}: {quoted(spec.name)}", f"tensor type {spec.qtype.name} cannot be decoded here"
            )
    return file
