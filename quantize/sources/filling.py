"""Stored bytes read into memory that is there already, such as a buffer that a graphics card can reach by itself."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from quantize.sources.model_source import ModelSource
from quantize.tensors import Array, Rows, TensorSpec

__all__ = ["FillingSource", "fill"]


@runtime_checkable
class FillingSource(Protocol):
    """A source that can read into memory of others."""

    def fill(self, spec: TensorSpec, xid: int, rows: Rows, out: Array) -> None:
        """Read the bytes of `read_blocks` into `out`, uint8 [n_rows, spec.row_bytes], C-contiguous."""
        ...


def fill(source: ModelSource, spec: TensorSpec, xid: int, rows: Rows, out: Array) -> None:
    """Read some rows, as `ModelSource.read_blocks` gives them, into `out`: directly where the source can.

    Args:
        source: the model.
        spec, xid, rows: see `ModelSource.read_blocks`.
        out: uint8 [n_rows, spec.row_bytes], C-contiguous.

    Raises:
        CheckpointError, GGUFError, ModelChangedError: as the source's `read_blocks`.
    """
    if isinstance(source, FillingSource):
        source.fill(spec, xid, rows, out)
    else:
        is_whole = rows == (0, spec.n_row)  # a source may keep whole matrices for other readers
        out[...] = source.read_blocks(spec, xid, None if is_whole else rows)
