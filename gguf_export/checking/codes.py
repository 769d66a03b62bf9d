"""Whether the codes of a block are those of its weights, whatever the importances were with which it was made.

Importances decide on the scales of a block. Its codes follow: for K types ggml rounds, at the end, each weight to the
nearest code that the stored scales offer (quantize_row_*_impl of ggml/src/ggml-quants.c). For IQ4_NL and IQ4_XS it does
so with the scale before that became a half. A code that is not the nearest one was changed afterwards, or made by a
program that rounds in another way, which shows in all blocks. Error feedback moves codes on purpose, those of a block
by few steps all of them: there a code stands out that is much farther away than the others.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from quantize.blocks.iq4 import INTEGERS
from quantize.codec import decode
from quantize.tensors import Array, QType

__all__ = ["not_nearest"]

WEIGHTS_AT_ONCE = 2**20  # the arithmetic takes some eight numbers of 64 bits for each
SLACK = 0.002  # in steps of the scale: another value may be nearer by this much, which rounding explains
MAX_SLACK = 5.0  # where rounding explains more, codes 11 apart cannot be told from each other any more
CODED_BEFORE_ROUNDING = (QType.IQ4_NL, QType.IQ4_XS)  # codes of the scale before it became a half
IQ4 = np.array(INTEGERS, np.float64)
FEW = 8  # codes of a block that a changed byte reaches, at most half of them
FAR_SHARE, FAR_STEPS, FAR_TIMES = 1 / 7, 4.0, 4.0
"""A code stands out by this share of all codes, and so many steps, where its error is so many times that of the others:
of 140,000 blocks that error feedback had made, none had an error of more than 3.3 times its eighth."""


@dataclass(frozen=True)
class _Codes:
    """Where the codes of a block are, and the values that they stand for."""

    first: int  # byte of the block
    last: int  # the byte behind them
    values: Array  # float64, ascending from 0, in steps of the scale

    @property
    def middles(self) -> Array:
        """The middle between each value and the next."""
        middles: Array = (self.values[1:] + self.values[:-1]) / 2
        return middles


def _linear(first: int, last: int, n: int) -> _Codes:
    return _Codes(first, last, np.arange(n, dtype=np.float64))


CODES: dict[QType, _Codes] = {
    QType.Q2_K: _linear(16, 80, 4),
    QType.Q3_K: _linear(0, 96, 8),
    QType.Q4_K: _linear(16, 144, 16),
    QType.Q5_K: _linear(16, 176, 32),
    QType.Q6_K: _linear(0, 192, 64),
    QType.IQ4_NL: _Codes(2, 18, IQ4 - IQ4[0]),
    QType.IQ4_XS: _Codes(8, 136, IQ4 - IQ4[0]),
}


def not_nearest(blocks: Array, weights: Array, qtype: QType, *, is_moved: bool = False) -> Array | None:
    """Which blocks hold codes that are not the nearest to their weights; None for types whose codes do not follow.

    Args:
        blocks: as stored, uint8 [rows, row bytes].
        weights: the weights that they were made from, float32 [rows, n_per_row].
        qtype: their type.
        is_moved: error feedback chose the codes: blocks are told in which one stands out.

    Returns:
        bool [rows * blocks of a row].
    """
    codes = CODES.get(qtype)
    if codes is None:
        return None
    n_rows, n_per_row = weights.shape
    step = max(1, WEIGHTS_AT_ONCE // n_per_row)
    pieces = [slice(first, first + step) for first in range(0, n_rows, step)]
    return np.concatenate(
        [_not_nearest(blocks[piece], weights[piece], qtype, codes, is_moved) for piece in pieces]
    )


def _not_nearest(blocks: Array, weights: Array, qtype: QType, codes: _Codes, is_moved: bool) -> Array:
    block_size, type_size = qtype.block_size, qtype.type_size
    lowest, highest = blocks.copy(), blocks.copy()  # with the least and the largest code everywhere
    for ends, bits in ((lowest, 0), (highest, 0xFF)):
        ends.reshape(-1, type_size)[:, codes.first : codes.last] = bits
    n_per_row = weights.shape[1]
    low, high, stored = (
        decode(each, qtype, n_per_row).astype(np.float64) for each in (lowest, highest, blocks)
    )
    with np.errstate(all="ignore"):  # a step of 0: the scale is 0, and any code is right
        step = (high - low) / codes.values[-1]
        exact = np.clip((weights - low) / step, 0, codes.values[-1])
        nearest = codes.values[np.searchsorted(codes.middles, np.nan_to_num(exact))]
        excess = np.abs((stored - low) / step - exact) - np.abs(nearest - exact)
    excess[step == 0] = 0
    excess = excess.reshape(-1, block_size)
    if is_moved:
        return _stands_out(excess, np.abs(stored - weights).reshape(-1, block_size), codes)
    slack: Array = np.full(len(excess), SLACK)
    if qtype in CODED_BEFORE_ROUNDING:
        d = np.abs(blocks.reshape(-1, type_size)[:, :2].copy().view("<f2")[:, 0].astype(np.float64))
        lost = np.maximum(
            2.0**-11, 2.0**-25 / np.maximum(d, 2.0**-24)
        )  # share of the scale that a half rounds off
        slack = 2.5 * codes.values[-1] * lost
        slack[slack > MAX_SLACK] = np.inf
    is_wrong: Array = ~(excess.max(axis=1) <= slack)  # `not <=` also catches NaN
    return is_wrong


def _stands_out(excess: Array, errors: Array, codes: _Codes) -> Array:
    """The blocks in which a code is far from the nearest, and its weight by much farther off than the others.

    Args:
        excess: steps by which codes are farther away than the nearest, [blocks, block size].
        errors: of the weights, of the same shape.
        codes: what codes stand for.
    """
    far = max(FAR_STEPS, FAR_SHARE * len(codes.values)) * np.diff(codes.values).max()
    usual = np.partition(errors, -FEW, axis=1)[:, -FEW, None]
    is_wrong: Array = ((excess > far) & (errors > FAR_TIMES * usual)).any(axis=1)
    return is_wrong
