"""A matrix becomes blocks whose errors cancel in the products with its inputs, as far as their moments tell.

The error of a matrix W encoded as Q is tr((W - Q) H (W - Q)^T), H the second moments of its inputs. Columns are rounded
from left to right, and the error of each is pushed onto those to its right through the triangular factor of the
inverse of H (Frantar et al., GPTQ, arXiv 2210.17323); the grid of a block is llama.cpp's own search, at the moment when
the feedback reaches it. Then rounds of coordinate descent move factors, scales, mins and codes within their formats.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cache, partial

import numpy as np
from threadpoolctl import ThreadpoolController

from quantize.blocks.parts import PartFormat, Parts, part_format
from quantize.codec import encode
from quantize.exceptions import RecipeError
from quantize.feedback.moves import move_codes, move_scales, push_errors, values_of
from quantize.guide import Guide
from quantize.tensors import Array, QType

__all__ = ["FeedbackInput", "encode_with_feedback", "side_by_side"]

ROUNDS = 3
UNIT_ROWS = 256
"""Rows that a thread works on; the same whatever the number of threads, for sums depend on it in their last bits."""


@dataclass(frozen=True, eq=False)
class FeedbackInput:
    """What the encoder knows of the inputs of a matrix with rows of n weights.

    `moments` float32 [n, n]: Σ x xᵀ with its damping, positive definite. `factor` float32 [n, n]: the upper
    triangular U with UᵀU the inverse of the moments. `importance` float32 [n]: weighs the search for the grids.
    """

    moments: Array
    factor: Array
    importance: Array


def encode_with_feedback(
    target: Array,
    qtype: QType,
    known: FeedbackInput,
    *,
    rounds: int = ROUNDS,
    workers: ThreadPoolExecutor | None = None,
) -> Array:
    """The blocks of a matrix, uint8 [n_row, row bytes].

    Args:
        target: float32 [n_row, n_per_row], the weights that are aimed at.
        qtype: a type of `blocks.parts.MOVABLE`.
        known: of the inputs.
        rounds: of coordinate descent.
        workers: threads that share the rows; the blocks do not depend on their number. By default all is done in this
            one, where products take the threads that NumPy gives them, on which last bits of sums depend.

    Raises:
        RecipeError: the parts of the type cannot be moved, or its blocks do not divide the rows.
    """
    form = part_format(qtype)
    if form is None or target.shape[1] % form.block_size:
        raise RecipeError("", f"error feedback cannot make {qtype.name} of rows of {target.shape[1]} weights")
    columns = _Columns(form)
    firsts = range(0, len(target), UNIT_ROWS)
    units = (target[first : first + UNIT_ROWS] for first in firsts)
    encode_rows = partial(columns.encoded, known=known, rounds=rounds)
    if workers is None:
        return np.concatenate(list(map(encode_rows, units)))
    with side_by_side():
        return np.concatenate(list(workers.map(encode_rows, units)))


def side_by_side() -> AbstractContextManager[object]:
    """A context in which products of NumPy take one thread: work side by side needs no more, and idle ones disturb it.

    To be entered by one thread at a time.
    """
    limited: AbstractContextManager[object] = _blas().limit(limits=1)
    return limited


@cache
def _blas() -> ThreadpoolController:
    """The threads of the libraries that multiply matrices; they are looked for once."""
    return ThreadpoolController().select(user_api="blas")


class _Columns:
    """The steps of the encoder, each over all block columns of some rows from left to right."""

    def __init__(self, form: PartFormat) -> None:
        self._form = form
        self._limits = np.array([form.least_scale, form.most_scale, form.most_min], np.float32)

    def encoded(self, target: Array, known: FeedbackInput, rounds: int) -> Array:
        """The blocks of some rows."""
        parts = self.fed_back(target, known)
        for _ in range(rounds):
            self.descend(target, known.moments, parts)
        return np.concatenate([self._form.join(of_column) for of_column in parts], axis=1)

    def fed_back(self, target: Array, known: FeedbackInput) -> list[Parts]:
        """Round the columns one after the other, errors pushed to the right."""
        form, size = self._form, self._form.block_size
        left = target.astype(np.float32, copy=True)
        parts = []
        for first in range(0, left.shape[1], size):
            block = slice(first, first + size)
            x = np.ascontiguousarray(left[:, block])
            fitted = form.split(encode(x, form.qtype, Guide(known.importance[block])))
            errors = np.empty_like(x)
            factor = np.ascontiguousarray(known.factor[block, block])
            push_errors(x, factor, *_arrays(fitted), form.levels, form.is_even, errors)
            if block.stop < left.shape[1]:
                left[:, block.stop :] -= errors @ known.factor[block, block.stop :]
            parts.append(fitted)
        return parts

    def descend(self, target: Array, moments: Array, parts: Sequence[Parts]) -> None:
        """One round of coordinate descent over the parts of all blocks."""
        form, size = self._form, self._form.block_size
        gradient = (target - self._values(parts)) @ moments
        for index, of_column in enumerate(parts):
            block = slice(index * size, (index + 1) * size)
            own = np.ascontiguousarray(moments[block, block])
            g = np.ascontiguousarray(gradient[:, block])
            moved = np.zeros_like(g)
            self._move_factors(g, own, of_column, moved)
            n_sub = size // form.n_sub
            sums = own.reshape(size, form.n_sub, n_sub)[np.arange(size), np.arange(size) // n_sub].sum(1)
            arrays = _arrays(of_column)
            move_scales(g, own, sums, *arrays, form.levels, self._limits, moved)
            move_codes(g, own, *arrays, form.levels, form.is_even, moved)
            gradient -= moved @ moments[block]

    def _values(self, parts: Sequence[Parts]) -> Array:
        size = self._form.block_size
        values = np.empty((len(parts[0].codes), len(parts) * size), np.float32)
        for index, of_column in enumerate(parts):
            columns = slice(index * size, (index + 1) * size)
            values_of(*_arrays(of_column), self._form.levels, values[:, columns])
        return values

    def _move_factors(self, g: Array, own: Array, parts: Parts, moved: Array) -> None:
        """Move d and dmin to the halves at which the error is least, where that lowers it."""
        form = self._form
        s = form.block_size // form.n_sub
        v = np.repeat(parts.scales, s, axis=1) * form.levels[parts.codes]
        vh = v @ own
        square, slope = (vh * v).sum(1), (g * v).sum(1)
        with np.errstate(all="ignore"):
            free = np.where(square > 0, slope / square, 0)
            if form.most_min:
                u = -np.repeat(parts.mins, s, axis=1)
                uh = u @ own
                square_u, mixed, slope_u = (uh * u).sum(1), (vh * u).sum(1), (g * u).sum(1)
                determinant = square * square_u - mixed * mixed
                is_free = determinant > 1e-6 * square * square_u
                free = np.where(is_free, (square_u * slope - mixed * slope_u) / determinant, free)
                free_u = np.where(is_free, (square * slope_u - mixed * slope) / determinant, 0)
            d, dmin = parts.factors[:, 0], parts.factors[:, 1]
            dx = (d + free).astype(np.float16).astype(np.float32) - d
            gain = 2 * dx * slope - dx * dx * square
            if form.most_min:
                dy = np.maximum((dmin + free_u).astype(np.float16).astype(np.float32), 0) - dmin
                gain += 2 * dy * slope_u - 2 * dx * dy * mixed - dy * dy * square_u
            better = (gain > 0) & np.isfinite(gain)
            dx = np.where(better, dx, 0).astype(np.float32)
        parts.factors[:, 0] += dx
        step = dx[:, None] * v
        if form.most_min:
            dy = np.where(better, dy, 0).astype(np.float32)
            parts.factors[:, 1] += dy
            step += dy[:, None] * u
        g -= step @ own
        moved += step


def _arrays(parts: Parts) -> tuple[Array, Array, Array, Array]:
    return parts.codes, parts.scales, parts.mins, parts.factors
