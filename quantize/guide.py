"""Statistics of the inputs of a matrix, by which an encoder weighs its errors."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from quantize.exceptions import ImatrixError
from quantize.tensors import Array

__all__ = ["Guide"]


@dataclass(frozen=True, eq=False)
class Guide:
    """Statistics of the inputs of one matrix, which `quantize.encode` takes beside the weights.

    `importance` is [n_per_row], one for each column, as an imatrix gives it; None where it is not known.
    """

    importance: Array | None = None

    @classmethod
    def of(cls, importance: Array | None) -> Guide | None:
        """The guide with an importance, or None where there is none."""
        return None if importance is None else cls(importance)

    def checked(self, n_per_row: int) -> Guide:
        """The same guide with its numbers as kernels take them: float32, contiguous, of its own.

        Raises:
            ImatrixError: the importance has another length than the rows, or is not finite.
        """
        if self.importance is None:
            return self
        if self.importance.shape != (n_per_row,):
            message = f"importance of shape {self.importance.shape} does not fit rows of {n_per_row} weights"
            raise ImatrixError("", message)
        with np.errstate(over="ignore"):  # of float64, for which infinity is found below
            values = np.array(self.importance, np.float32)
        if not np.isfinite(values).all():
            raise ImatrixError("", "importance holds NaN or infinity")
        return replace(self, importance=values)
