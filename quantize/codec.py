"""Weights become bytes, and bytes become weights.

Here is the only loop over fit, round and pack for rules of rounding that look at one panel (`blocks.rounding`); error
feedback would take the same steps column by column.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from quantize.blocks import block_format, can_encode
from quantize.blocks.base import BlockFormat, FloatFormat, GroupFormat
from quantize.blocks.error_weights import row_mean_squares, tile_guide
from quantize.blocks.jit import kernel
from quantize.blocks.rounding import Rounding, nearest
from quantize.blocks.tiles import PANEL, column_groups, load, room_for, row_groups
from quantize.exceptions import DecodeError, ImatrixError, RecipeError
from quantize.guide import Guide
from quantize.tensors import Array, QType

__all__ = ["decode", "encode", "first_non_finite", "row_bytes", "to_qtype"]

EXPONENTS: dict[np.dtype[Any], tuple[np.dtype[Any], int]] = {
    np.dtype(np.uint16): (np.dtype(np.uint16), 0x7F80),  # bits of bfloat16
    np.dtype(np.float16): (np.dtype(np.uint16), 0x7C00),
    np.dtype(np.float32): (np.dtype(np.uint32), 0x7F800000),
}
"""Per weight type: its bits, and those of the exponent, which are all set in infinities and NaNs."""


CONVERTED = 1 << 22  # weights of a format without grid that are converted at a time


def to_qtype(qtype: QType | str) -> QType:
    """A tensor type by its name, in any case; a type as it is.

    Raises:
        RecipeError: ggml has no type of that name.
    """
    if not isinstance(qtype, str):
        return QType(qtype)  # the gguf package has an enumeration of its own
    if qtype.upper() not in QType.__members__:
        raise RecipeError("", f"unknown tensor type {qtype!r}", f"known: {', '.join(QType.__members__)}")
    return QType[qtype.upper()]


def row_bytes(qtype: QType, n_per_row: int) -> int:
    """Bytes of one row of `n_per_row` weights, as `ggml_row_size`.

    Raises:
        RecipeError: the type cannot be encoded here, or its block does not divide the row.
    """
    form = block_format(qtype)
    if n_per_row < 1 or n_per_row % form.block_size:
        message = f"rows of {n_per_row} weights cannot be {qtype.name}: its blocks hold {form.block_size}"
        raise RecipeError("", message)
    return n_per_row // form.block_size * form.type_size


def encode(
    weights: Array, qtype: QType | str, guide: Guide | None = None, rounding: Rounding = nearest
) -> Array:
    """The blocks of a matrix: with the rounding `nearest` those of ggml's `ggml_quantize_chunk` (x86-64 release build).

    Args:
        weights: [n_rows, n_per_row] as float32, float16 or uint16 (bits of bfloat16); finite (see
            `first_non_finite`).
        qtype: the tensor type, or its name in any case.
        guide: statistics of the inputs of the matrix; None fits without. Types that have no use for an importance
            (Q8_0, MXFP4, NVFP4, Q1_0, Q2_0, TQ1_0, TQ2_0, F16, BF16, F32) ignore it, as ggml does.
        rounding: chooses the codes on each grid that was fitted; not asked for F16, BF16 and F32, which have none, and
            not for types whose codes stand for groups of weights (IQ1 to IQ3).

    Returns:
        uint8 [n_rows, row_bytes(qtype, n_per_row)].

    Raises:
        RecipeError: the type cannot be encoded here, or the matrix does not fit it.
        ImatrixError: the importance has another length than the rows, or is not finite; or there is none and the type
            cannot be fitted without (IQ2_XXS, IQ2_XS, IQ1_S).

    >>> encode(np.ones((2, 256), np.float32), "Q4_K").shape
    (2, 144)
    """
    if weights.ndim != 2 or weights.dtype not in EXPONENTS:
        raise RecipeError(
            "",
            f"weights to encode must be a matrix of float32, float16 or uint16 (bits of bfloat16), "
            f"not {weights.dtype} {weights.shape}",
        )
    qtype = to_qtype(qtype)
    form = block_format(qtype)
    n_rows, n_per_row = weights.shape
    blocks = np.empty((n_rows, row_bytes(qtype, n_per_row)), np.uint8)
    guide = None if guide is None else guide.checked(n_per_row)
    if not form.uses_importance:
        guide = None
    if form.needs_importance and (guide is None or guide.importance is None):
        raise ImatrixError(
            "", f"{qtype.name} cannot be fitted without importances", "give an importance matrix"
        )
    room = room_for(weights.size, form.block_size)
    with np.errstate(all="ignore"):  # where kernels run as plain Python, overflow is part of the arithmetic
        for rows in row_groups(n_rows, n_per_row, CONVERTED if isinstance(form, FloatFormat) else PANEL):
            group = weights[rows]
            if group.dtype == np.float16:
                group = group.astype(np.float32)
            group = np.ascontiguousarray(group)
            if isinstance(form, FloatFormat):
                form.encode(group, blocks[rows])
            else:
                _encode_rows(form, group, guide, rounding, blocks[rows], room)
    return blocks


def _encode_rows(
    form: BlockFormat | GroupFormat,
    weights: Array,
    guide: Guide | None,
    rounding: Rounding,
    blocks: Array,
    room: Array,
) -> None:
    """Fit, round and pack a group of rows, panel by panel: weights float32 or uint16, C-contiguous.

    With a guide each panel lies to the right of those before. Without one it does not matter in which row or column a
    block lies, and a single long row is quicker to read.
    """
    if guide is None:
        weights, blocks = weights.reshape(1, -1), blocks.reshape(1, -1)
    n_rows, n_per_row = weights.shape
    size = form.block_size
    squares = row_mean_squares(weights) if guide and form.weighs_rows else np.zeros(n_rows, np.float32)
    for columns in column_groups(n_rows, n_per_row // size, size):
        x = load(weights, columns, size, room)
        part = None if guide is None else tile_guide(guide, columns, size, squares)
        if isinstance(form, GroupFormat):
            form.encode(x, part, columns, blocks)
        else:
            grid = form.fit(x, part)
            form.pack(grid, rounding(grid, x), columns, blocks)


def decode(blocks: Array, qtype: QType | str, n_per_row: int) -> Array:
    """The weights that blocks stand for, bit for bit those of `gguf.dequantize`.

    Args:
        blocks: uint8 [n_rows, row_bytes(qtype, n_per_row)].
        qtype: the tensor type, or its name in any case.
        n_per_row: weights of one row.

    Returns:
        float32 [n_rows, n_per_row].

    Raises:
        DecodeError: the type is not known here, or the blocks are not rows of it.

    >>> decode(encode(np.ones((1, 32), np.float32), "BF16"), "BF16", 32)[0, :3].tolist()
    [1.0, 1.0, 1.0]
    """
    qtype = to_qtype(qtype)
    if not can_encode(qtype):
        raise DecodeError("", f"blocks of type {qtype.name} cannot be decoded")
    form = block_format(qtype)
    n_blocks, rest = divmod(n_per_row, form.block_size)
    n_bytes = n_blocks * form.type_size
    if rest or blocks.dtype != np.uint8 or blocks.ndim != 2 or blocks.shape[1] != n_bytes:
        raise DecodeError(
            "",
            f"blocks of {qtype.name} for rows of {n_per_row} weights must be uint8 [n_rows, {n_bytes}], "
            f"not {blocks.dtype} {blocks.shape}",
        )
    weights = np.empty((len(blocks), n_per_row), np.float32)
    with np.errstate(all="ignore"):
        form.decode(np.ascontiguousarray(blocks), weights)
    return weights


def first_non_finite(weights: Array) -> int | None:
    """The flat index of the first NaN or infinity, or None; weights as `encode` takes them."""
    bits_type, exponent = EXPONENTS[weights.dtype]
    bits = np.ascontiguousarray(weights).view(bits_type).reshape(-1)
    index = int(first_with(bits, bits_type.type(exponent)))
    return None if index < 0 else index


@kernel
def first_with(bits: Array, mask: int) -> int:
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
