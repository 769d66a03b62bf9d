"""A source that judges a recipe without writing a file: each matrix is read, encoded and decoded again."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Literal

import numpy as np

from calibration.importance.imatrix import Imatrix
from quantize.codec import decode, encode
from quantize.finite import refuse_non_finite
from quantize.guide import Guide
from quantize.recipes.layout import Plan
from quantize.recipes.recipe import require_importances
from quantize.sources.fingerprint import hashed
from quantize.sources.model_source import ModelSource
from quantize.sources.over import Over
from quantize.tensors import NUMPY_TYPES, Array, Rows, TensorSpec

__all__ = ["RoundTrip", "SharedSource"]


class RoundTrip(Over):
    """A checkpoint as it would be read back from the file that `plan` describes (a `ModelSource`).

    Bytes are those of the file, so figures are those of the file.

    Raises:
        NotFiniteError: a weight is NaN or infinity, when it is read.
        NeedsImatrixError: a type of the plan is of no use without importances, and there are none for the tensor.
    """

    kind: Literal["round trip"] = "round trip"

    def __init__(self, source: ModelSource, plan: Plan, imatrix: Imatrix | None = None) -> None:
        require_importances(
            plan, lambda name: imatrix is not None and imatrix.importance(name, 0) is not None
        )
        super().__init__(source)
        self._imatrix = imatrix
        self._origins = {spec.name: spec for spec in source.specs()}
        self._specs = [planned.target for planned in plan.tensors]
        self.label = f"{source.label} as {plan.ftype.name}"
        """The model and the type that it goes through."""

    def fingerprint(self) -> str:
        """A hash of the checkpoint's fingerprint, of the types, and of the importances."""
        parts = [self._source.fingerprint().encode()]
        for spec in self._specs:
            parts.append(f"{spec.name} {spec.qtype.name}".encode())
            for xid in range(spec.n_matrix):
                importance = self._importance(spec.name, xid)
                parts.append(b"" if importance is None else np.ascontiguousarray(importance).tobytes())
        return hashed(parts)

    def row_step(self, spec: TensorSpec) -> int:
        """The step of rows that the checkpoint reads without reading anything else."""
        return self._source.row_step(self._origins[spec.name])

    def specs(self) -> Sequence[TensorSpec]:
        """All tensors, with the types of the plan."""
        return self._specs

    def read(self, spec: TensorSpec, xid: int = 0, rows: Rows | None = None) -> Array:
        """The matrix encoded and decoded again; see `TensorSource.read`."""
        blocks = self.read_blocks(spec, xid, rows)
        if spec.qtype in NUMPY_TYPES:
            return blocks.view(NUMPY_TYPES[spec.qtype])
        return decode(blocks, spec.qtype, spec.n_per_row)

    def read_blocks(self, spec: TensorSpec, xid: int = 0, rows: Rows | None = None) -> Array:
        """The bytes that the file would hold: uint8 [n_rows, spec.row_bytes]."""
        origin = self._origins[spec.name]
        if spec.qtype == origin.qtype and spec.qtype not in NUMPY_TYPES:
            return self._source.read_blocks(origin, xid, rows)
        whole = rows in (None, (0, spec.n_row))
        weights = self._source.read(origin, xid) if whole else self._source.read(origin, xid, rows)
        if spec.qtype == origin.qtype and spec.qtype in NUMPY_TYPES:
            return np.ascontiguousarray(weights).view(np.uint8)
        refuse_non_finite(spec, xid, rows or (0, spec.n_row), weights)  # blocks would hide it
        importance = self._importance(spec.name, xid) if spec.qtype not in NUMPY_TYPES else None
        return encode(weights, spec.qtype, Guide.of(importance))

    def _importance(self, name: str, xid: int) -> Array | None:
        return None if self._imatrix is None else self._imatrix.importance(name, xid)


class SharedSource(Over):
    """A source that several models of one pass read from: each whole matrix is read once and kept for the others.

    `n_user` models will read every matrix; a matrix is dropped when the last of them has read it.
    """

    def __init__(self, source: ModelSource, n_user: int) -> None:
        super().__init__(source)
        self.kind, self.label = source.kind, source.label
        self._n_user = n_user
        self._lock = threading.Lock()
        self._kept: dict[tuple[str, int], tuple[Array, int]] = {}

    def fingerprint(self) -> str:
        """The fingerprint of the source."""
        return self._source.fingerprint()

    def __reduce__(self) -> tuple[type[SharedSource], tuple[ModelSource, int]]:
        # What is kept stays where it is.
        return SharedSource, (self._source, self._n_user)

    def row_step(self, spec: TensorSpec) -> int:
        """All rows: matrices are shared whole."""
        return spec.n_row

    def specs(self) -> Sequence[TensorSpec]:
        """The tensors of the source."""
        return self._source.specs()

    def read(self, spec: TensorSpec, xid: int = 0, rows: Rows | None = None) -> Array:
        """See `TensorSource.read`; a whole matrix is shared, so it must not be written into."""
        if rows is not None:
            return self._source.read(spec, xid, rows)
        key = (spec.name, xid)
        with self._lock:
            weights, n_left = self._kept.pop(key, (None, self._n_user))
            if weights is None:
                weights = self._source.read(spec, xid)
            if n_left > 1:
                self._kept[key] = (weights, n_left - 1)
        return weights

    def read_blocks(self, spec: TensorSpec, xid: int = 0, rows: Rows | None = None) -> Array:
        """The bytes of what `read` gives, shared as it is: uint8 [n_rows, spec.row_bytes]."""
        if spec.qtype not in NUMPY_TYPES:
            return self._source.read_blocks(spec, xid, rows)
        return self.read(spec, xid, rows).view(np.uint8)
