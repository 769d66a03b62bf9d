"""A source that judges a recipe without writing a file: each matrix is read, encoded and decoded again."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from calibration.importance.imatrix import Imatrix
from quantize.codec import decode, encode, first_non_finite
from quantize.exceptions import CheckpointError, ImatrixError
from quantize.guide import Guide
from quantize.hparams import Hparams
from quantize.recipes.layout import Plan
from quantize.tensors import NUMPY_TYPES, Array, Rows, TensorSource, TensorSpec

__all__ = ["RoundTrip", "SharedSource"]


class RoundTrip:
    """A checkpoint as it would be read back from the file that `plan` describes.

    Bytes are those of the file, so figures are those of the file.

    Raises:
        CheckpointError: a weight is not a finite number, when it is read.
        ImatrixError: a type of the plan is of no use without importances, and there are none for the tensor.
    """

    def __init__(self, source: TensorSource, plan: Plan, imatrix: Imatrix | None = None) -> None:
        self._source = source
        self._imatrix = imatrix
        self._origins = {spec.name: spec for spec in source.specs()}
        self._specs = [
            TensorSpec(planned.spec.name, planned.spec.shape, planned.qtype) for planned in plan.tensors
        ]
        for planned in plan.tensors:
            if planned.requires_imatrix and self._importance(planned.spec.name, 0) is None:
                raise ImatrixError(
                    f"{planned.spec.name}: {plan.ftype.name} makes it {planned.qtype.name}, which needs importances; "
                    "give an importance matrix that covers it"
                )

    @property
    def hparams(self) -> Hparams:
        """The checkpoint's."""
        return self._source.hparams

    @property
    def imatrix(self) -> Imatrix | None:
        """The importances that it encodes with."""
        return self._imatrix

    def specs(self) -> Sequence[TensorSpec]:
        """All tensors, with the types of the plan."""
        return self._specs

    def read(self, spec: TensorSpec, xid: int = 0, rows: Rows | None = None) -> Array:
        """The matrix as it comes back; see `TensorSource.read`."""
        blocks = self.read_blocks(spec, xid, rows or (0, spec.n_row))
        if spec.qtype in NUMPY_TYPES:
            return blocks.view(NUMPY_TYPES[spec.qtype])
        return decode(blocks, spec.qtype, spec.n_per_row)

    def read_blocks(self, spec: TensorSpec, xid: int, rows: Rows) -> Array:
        """The bytes that the file would hold: uint8 [n_rows, bytes per row]."""
        origin = self._origins[spec.name]
        whole = rows == (0, spec.n_row)
        weights = self._source.read(origin, xid) if whole else self._source.read(origin, xid, rows)
        if spec.qtype == origin.qtype and spec.qtype in NUMPY_TYPES:
            return np.ascontiguousarray(weights).view(np.uint8)
        if first_non_finite(weights) is not None:  # blocks would hide it
            place = f" of expert {xid}" if spec.n_expert > 1 else ""
            raise CheckpointError(
                f"{spec.name}: a weight{place} is not a finite number; the checkpoint is damaged"
            )
        importance = self._importance(spec.name, xid) if spec.qtype not in NUMPY_TYPES else None
        return encode(weights, spec.qtype, Guide.of(importance))

    def _importance(self, name: str, xid: int) -> Array | None:
        return None if self._imatrix is None else self._imatrix.importance(name, xid)


class SharedSource:
    """A source that several models of one pass read from: each whole matrix is read once and kept for the others.

    `n_user` of them will read every matrix; it is dropped after the last one did.
    """

    def __init__(self, source: TensorSource, n_user: int) -> None:
        self._source = source
        self._n_user = n_user
        self._kept: dict[tuple[str, int], tuple[Array, int]] = {}

    @property
    def hparams(self) -> Hparams:
        """The source's."""
        return self._source.hparams

    def specs(self) -> Sequence[TensorSpec]:
        """The source's."""
        return self._source.specs()

    def read(self, spec: TensorSpec, xid: int = 0, rows: Rows | None = None) -> Array:
        """See `TensorSource.read`; nobody may write into a whole matrix."""
        if rows is not None:
            return self._source.read(spec, xid, rows)
        place = (spec.name, xid)
        weights, n_left = self._kept.pop(place, (None, self._n_user))
        if weights is None:
            weights = self._source.read(spec, xid)
        if n_left > 1:
            self._kept[place] = (weights, n_left - 1)
        return weights
