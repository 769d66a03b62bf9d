"""Refusing weights that are not numbers."""

from __future__ import annotations

from quantize.codec import first_non_finite
from quantize.exceptions import NotFiniteError
from quantize.tensors import Array, Rows, TensorSpec

__all__ = ["refuse_non_finite"]


def refuse_non_finite(spec: TensorSpec, xid: int, rows: Rows, weights: Array) -> None:
    """Stop at a NaN or infinity, as llama-quantize does.

    Args:
        spec: the tensor.
        xid: the matrix of it that the weights belong to.
        rows: the rows of that matrix that they are.
        weights: [rows[1] - rows[0], n_per_row], of a type that `codec.encode` takes.

    Raises:
        NotFiniteError: names the tensor, the expert, the row and the column.
    """
    index = first_non_finite(weights)
    if index is None:
        return
    row, column = divmod(index, spec.n_per_row)
    raise NotFiniteError(
        spec.label(xid),
        f"row {rows[0] + row}, column {column} is not a finite number",
        "the checkpoint is damaged or the merge failed: fetch it or make it again",
    )
