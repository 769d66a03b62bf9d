"""Weights, format and importance become bytes, and bytes become weights: the unit of work."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from quantize.blocks import block_format
from quantize.blocks.jit import kernel
from quantize.exceptions import ImatrixError, RecipeError
from quantize.telling import OnProgress, Progress, silent
from quantize.tensors import Array, QType

__all__ = ["compile_kernels", "decode", "encode", "first_non_finite", "row_bytes"]

EXPONENTS: dict[np.dtype[Any], tuple[np.dtype[Any], int]] = {
    np.dtype(np.uint16): (np.dtype(np.uint16), 0x7F80),  # bits of bfloat16
    np.dtype(np.float16): (np.dtype(np.uint16), 0x7C00),
    np.dtype(np.float32): (np.dtype(np.uint32), 0x7F800000),
}
"""Per weight type: its bits, and those of the exponent, which are all set in infinities and NaNs."""

WIDENED = 1 << 20  # float16 weights that are widened to float32 at a time


def row_bytes(qtype: QType, n_per_row: int) -> int:
    """Bytes of one row of `n_per_row` weights, as `ggml_row_size`.

    Raises:
        RecipeError: the type is not known here, or its block does not divide the row.
    """
    form = block_format(qtype)
    if n_per_row < 1 or n_per_row % form.block_size:
        raise RecipeError(
            f"rows of {n_per_row} weights cannot be {qtype.name}: its blocks hold {form.block_size}"
        )
    return n_per_row // form.block_size * form.type_size


def encode(weights: Array, qtype: QType, importance: Array | None = None) -> Array:
    """The blocks of a matrix, equal to those of ggml's `ggml_quantize_chunk` (x86-64 release build).

    Args:
        weights: [n_rows, n_per_row] as float32, float16 or uint16 (bits of bfloat16); finite (see
            `first_non_finite`).
        qtype: the tensor type.
        importance: [n_per_row], one importance per column, as an imatrix gives it; None fits without. Types that have
            no use for it (Q8_0, MXFP4, F16, BF16, F32) ignore it, as ggml does.

    Returns:
        uint8 [n_rows, row_bytes(qtype, n_per_row)].

    Raises:
        RecipeError: the type is not known here, or the matrix does not fit it.
        ImatrixError: the importance has another length than the rows, or is not finite.
    """
    if weights.ndim != 2 or weights.dtype not in EXPONENTS:
        raise RecipeError(
            f"weights to encode must be a matrix of float32, float16 or uint16 (bits of bfloat16), "
            f"not {weights.dtype} {weights.shape}"
        )
    form = block_format(qtype)
    n_rows, n_per_row = weights.shape
    out = np.empty((n_rows, row_bytes(qtype, n_per_row)), np.uint8)
    importance = _checked(importance, n_per_row)
    if not form.uses_importance:
        importance = None
    step = n_rows
    if weights.dtype == np.float16:
        step = max(1, WIDENED // n_per_row)
    with np.errstate(
        all="ignore"
    ):  # where the kernels run as plain Python, overflow is part of the arithmetic
        for row in range(0, n_rows, max(1, step)):
            part = weights[row : row + step]
            if part.dtype == np.float16:
                part = part.astype(np.float32)
            form.encode(np.ascontiguousarray(part), importance, out[row : row + step])
    return out


def _checked(importance: Array | None, n_per_row: int) -> Array | None:
    """The importance as the kernels take it: float32, contiguous, one per column, finite."""
    if importance is None:
        return None
    if importance.shape != (n_per_row,):
        raise ImatrixError(f"importance of shape {importance.shape} does not fit rows of {n_per_row} weights")
    values: Array = np.ascontiguousarray(importance, np.float32)
    if not np.isfinite(values).all():
        raise ImatrixError("importance holds NaN or infinity")
    return values


def decode(blocks: Array, qtype: QType, n_per_row: int) -> Array:
    """The weights that blocks stand for, bit for bit those of `gguf.dequantize`.

    Args:
        blocks: uint8 [n_rows, row_bytes(qtype, n_per_row)].
        qtype: the tensor type.
        n_per_row: weights of one row.

    Returns:
        float32 [n_rows, n_per_row].

    Raises:
        RecipeError: the type is not known here, or the blocks are not rows of it.
    """
    n_bytes = row_bytes(qtype, n_per_row)
    if blocks.dtype != np.uint8 or blocks.ndim != 2 or blocks.shape[1] != n_bytes:
        raise RecipeError(
            f"blocks of {qtype.name} for rows of {n_per_row} weights must be uint8 [n_rows, {n_bytes}], "
            f"not {blocks.dtype} {blocks.shape}"
        )
    out = np.empty((len(blocks), n_per_row), np.float32)
    with np.errstate(all="ignore"):
        block_format(qtype).decode(np.ascontiguousarray(blocks), out)
    return out


def first_non_finite(weights: Array) -> int | None:
    """The flat index of the first NaN or infinity, or None; weights as `encode` takes them."""
    bits_type, exponent = EXPONENTS[weights.dtype]
    bits = np.ascontiguousarray(weights).view(bits_type).reshape(-1)
    found = int(_first_with(bits, bits_type.type(exponent)))
    return None if found < 0 else found


@kernel
def _first_with(bits: Array, mask: int) -> int:
    """The first index at which all bits of the mask are set, or -1; run after run, so that a run is one vector loop."""
    run = 4096
    for start in range(0, bits.size, run):
        part = bits[start : start + run]
        n = 0
        for i in range(part.size):
            n += (part[i] & mask) == mask
        if n:
            for i in range(part.size):
                if (part[i] & mask) == mask:
                    return start + i
    return -1


def compile_kernels(jobs: Iterable[tuple[npt.DTypeLike, QType, bool]], progress: OnProgress = silent) -> None:
    """Compile, or load from numba's cache, the encoders that are about to be used, and say so.

    Args:
        jobs: (type of the weights, tensor type, with importance?) of each encoder; repetitions are free.
        progress: told before each kernel and at the end: stage "compiling kernels".
    """
    wanted = dict.fromkeys(
        (np.dtype(np.float32 if np.dtype(dtype) == np.float16 else dtype), qtype, with_importance)
        for dtype, qtype, with_importance in jobs
    )
    for done, (dtype, qtype, with_importance) in enumerate(wanted):
        progress(Progress("compiling kernels", done, len(wanted), "kernels"))
        n = block_format(qtype).block_size
        weights = np.zeros((1, n), dtype)
        encode(weights, qtype, np.ones(n, np.float32) if with_importance else None)
    progress(Progress("compiling kernels", len(wanted), len(wanted), "kernels"))
