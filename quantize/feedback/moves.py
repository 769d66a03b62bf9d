"""Kernels that move the parts of one block column: each works row by row, so rows can be divided among threads.

Letters: n rows, b weights of a block, s weights of a sub-block. A weight stands for
(d * scale) * levels[code] - (dmin * min), see `quantize.blocks.parts`; `is_even` where levels are 1 apart.
"""

from __future__ import annotations

import numpy as np

from quantize.blocks.jit import kernel
from quantize.blocks.lanes import ZERO
from quantize.tensors import Array

__all__ = ["move_codes", "move_scales", "push_errors", "values_of"]

HALF = np.float32(0.5)
EPS = np.float32(1e-6)


@kernel
def values_of(codes: Array, scales: Array, mins: Array, factors: Array, levels: Array, values: Array) -> None:
    """The weights float32 [n, b] that parts stand for."""
    n_sub = scales.shape[1]
    s = codes.shape[1] // n_sub
    for r in range(len(codes)):
        for j in range(n_sub):
            scale, minimum = factors[r, 0] * scales[r, j], factors[r, 1] * mins[r, j]
            for k in range(j * s, (j + 1) * s):
                values[r, k] = scale * levels[codes[r, k]] - minimum


@kernel
def _nearest(y: np.float32, levels: Array, is_even: bool) -> np.uint8:
    """The code of the level nearest to y."""
    last = len(levels) - 1
    if is_even:
        return np.uint8(min(max(np.floor(y - levels[0] + HALF), ZERO), np.float32(last)))
    code = 0
    for above in range(last):
        code += y >= HALF * (levels[above] + levels[above + 1])
    return np.uint8(code)


@kernel
def push_errors(
    x: Array,
    factor: Array,
    codes: Array,
    scales: Array,
    mins: Array,
    factors: Array,
    levels: Array,
    is_even: bool,
    errors: Array,
) -> None:
    """Choose codes column by column; the error of each moves into the columns to its right.

    Args:
        x: the weights float32 [n, b], which change.
        factor: float32 [b, b], the block on the diagonal of the upper triangular factor U of the inverse of the
            moments, U^T U.
        codes, scales, mins, factors, levels, is_even: the parts; codes change. Where a scale is 0 they stay.
        errors: float32 [n, b], filled with errors / diag(U): the columns beyond the block are to be lowered by their
            product with U's rows.
    """
    n_sub = scales.shape[1]
    b = x.shape[1]
    s = b // n_sub
    for r in range(len(x)):
        w = x[r]
        for k in range(b):
            j = k // s
            scale, minimum = factors[r, 0] * scales[r, j], factors[r, 1] * mins[r, j]
            if scale != ZERO:
                codes[r, k] = _nearest((w[k] + minimum) / scale, levels, is_even)
            row = factor[k]
            error = (w[k] - (scale * levels[codes[r, k]] - minimum)) / row[k]
            errors[r, k] = error
            for i in range(k + 1, b):
                w[i] -= error * row[i]


@kernel
def move_codes(
    gradient: Array,
    moments: Array,
    codes: Array,
    scales: Array,
    mins: Array,
    factors: Array,
    levels: Array,
    is_even: bool,
    moved: Array,
) -> None:
    """Move each code to where the error is least while all others stay.

    Args:
        gradient: float32 [n, b], the block's columns of (target - weights) moments; kept up to date.
        moments: float32 [b, b], the block on the diagonal.
        codes, scales, mins, factors, levels, is_even: the parts; codes change.
        moved: float32 [n, b]: what the weights have moved by is added.
    """
    n_sub = scales.shape[1]
    b = gradient.shape[1]
    s = b // n_sub
    for r in range(len(gradient)):
        g = gradient[r]
        for j in range(n_sub):
            scale = factors[r, 0] * scales[r, j]
            if scale == ZERO:
                continue
            for k in range(j * s, (j + 1) * s):
                curvature = moments[k, k]
                if not curvature > ZERO:
                    continue
                old = codes[r, k]
                new = _nearest(levels[old] + g[k] / (curvature * scale), levels, is_even)
                if new != old:
                    codes[r, k] = new
                    step = scale * (levels[new] - levels[old])
                    moved[r, k] += step
                    row = moments[k]
                    for i in range(b):
                        g[i] -= step * row[i]


@kernel
def move_scales(
    gradient: Array,
    moments: Array,
    sums: Array,
    codes: Array,
    scales: Array,
    mins: Array,
    factors: Array,
    levels: Array,
    limits: Array,
    moved: Array,
) -> None:
    """Move the scale and the min of each sub-block to the whole numbers at which the error is least.

    Args:
        gradient, moments, moved: see `move_codes`.
        sums: float32 [b], the sum of each row of `moments` over the columns of its own sub-block.
        codes, scales, mins, factors, levels: the parts; scales and mins change.
        limits: float32 [3], the least and the most scale, and the most min (0: there are none).
    """
    n_sub = scales.shape[1]
    b = gradient.shape[1]
    s = b // n_sub
    v, product, step = np.empty(s, np.float32), np.empty(s, np.float32), np.empty(s, np.float32)
    for r in range(len(gradient)):
        g = gradient[r]
        for j in range(n_sub):
            first = j * s
            square, slope = ZERO, ZERO
            for k in range(s):
                v[k] = factors[r, 0] * levels[codes[r, first + k]]
                slope += g[first + k] * v[k]
            product[:] = ZERO
            for k in range(s):  # moments are symmetric; sums of vectors are quick, those within one are not
                row = moments[first + k, first : first + s]
                for i in range(s):
                    product[i] += v[k] * row[i]
            for k in range(s):
                square += v[k] * product[k]
            dx, dy = _best_step(j, r, g, v, sums, square, slope, scales, mins, factors, limits)
            if dx == ZERO and dy == ZERO:
                continue
            scales[r, j] += dx
            mins[r, j] += dy
            for k in range(s):
                step[k] = dx * v[k] - dy * factors[r, 1]
                moved[r, first + k] += step[k]
            for k in range(s):
                row = moments[first + k]
                for i in range(b):
                    g[i] -= step[k] * row[i]


@kernel
def _best_step(
    j: int,
    r: int,
    g: Array,
    v: Array,
    sums: Array,
    square: np.float32,
    slope: np.float32,
    scales: Array,
    mins: Array,
    factors: Array,
    limits: Array,
) -> tuple[np.float32, np.float32]:
    """By how much the scale and the min of sub-block j of row r move; 0 where that does not lower the error.

    The error falls by 2 (dx slope + dy slope_min) - (dx² square + 2 dx dy mixed + dy² square_min).
    """
    least, most, most_min = limits[0], limits[1], limits[2]
    s = len(v)
    old, old_min, dmin = scales[r, j], mins[r, j], factors[r, 1]
    square_min, slope_min, mixed = ZERO, ZERO, ZERO
    if most_min > ZERO:
        for k in range(s):
            total = sums[j * s + k]
            square_min += total
            slope_min -= g[j * s + k]
            mixed -= v[k] * total
        square_min *= dmin * dmin
        slope_min *= dmin
        mixed *= dmin
    free = slope / square if square > ZERO else ZERO
    determinant = square * square_min - mixed * mixed
    if square_min > ZERO and determinant > EPS * square * square_min:
        free = (square_min * slope - mixed * slope_min) / determinant
    best, best_x, best_y = ZERO, ZERO, ZERO
    for candidate in range(2):
        x = min(max(np.floor(old + free) + np.float32(candidate), least), most) - old
        y = ZERO
        if square_min > ZERO:
            wish = np.floor(old_min + (slope_min - mixed * x) / square_min + HALF)
            y = min(max(wish, ZERO), most_min) - old_min
        gain = np.float32(2) * (x * slope + y * slope_min)
        gain -= x * x * square + np.float32(2) * x * y * mixed + y * y * square_min
        if gain > best:
            best, best_x, best_y = gain, x, y
    return best_x, best_y
