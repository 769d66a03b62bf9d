"""Refuse weights that are NaN or infinity: blocks would hide them, and figures would be worth nothing."""

from __future__ import annotations

from quantize.codec import first_non_finite
from quantize.containers.untrusted import printable
from quantize.exceptions import NotFiniteError
from quantize.tensors import Array, Rows, TensorSpec

__all__ = ["refuse_non_finite"]


def refuse_non_finite(spec: TensorSpec, xid: int, rows: Rows, weights: Array) -> None:
    """Stop at a NaN or infinity, as llama-quantize does.

    Args:
        spec: the tensor.
        xid: the matrix of a stack that the weights are of.
        rows: the rows of that matrix that the weights are.
        weights: [rows[1] - rows[0], n_per_row], float32, float16 or uint16 (bits of bfloat16).

    Raises:
        NotFiniteError: names the tensor, the expert, and the row and column of the first such weight.
    """
    index = first_non_finite(weights)
    if index is not None:
        row, column = divmod(index, spec.n_per_row)
        raise NotFiniteError(
            printable(spec.label(xid)),
            f"row {rows[0] + row}, column {column} is not a finite number",
            "the checkpoint is damaged or the merge failed: fetch it or make it again",
        )
