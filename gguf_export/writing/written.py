"""The model in the files that are being written, as it will be read from them."""

from __future__ import annotations

from calibration.importance.imatrix import Imatrix
from calibration.judging.round_trip import RoundTrip
from gguf_export.writing.open_files import OpenFiles
from quantize.recipes.layout import Plan
from quantize.sources.model_source import ModelSource
from quantize.tensors import Array, Rows, TensorSpec

__all__ = ["Written"]


class Written(RoundTrip):
    """A round trip whose bytes are those that an unfinished export has put into its files (a `ModelSource`)."""

    def __init__(self, source: ModelSource, plan: Plan, imatrix: Imatrix | None, files: OpenFiles) -> None:
        """Read from files in which nothing of the plan is lacking."""
        super().__init__(source, plan, imatrix)
        self._files = files

    def read_blocks(self, spec: TensorSpec, xid: int = 0, rows: Rows | None = None) -> Array:
        """The bytes in the file: uint8 [n_rows, spec.row_bytes]."""
        first, last = rows or (0, spec.n_row)
        start = xid * spec.n_row + first
        blocks = self._files.read(spec.name, start * spec.row_bytes, (last - first) * spec.row_bytes)
        return blocks.reshape(last - first, spec.row_bytes)
