"""Blocks taken apart into what can be moved: codes, the scales and mins of sub-blocks, the factors of the block.

    value = (d * scale) * levels[code] - (dmin * min)

Here blocks lie as in a file, one after the other, and not in tiles: whoever moves the parts goes through rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import import_module

import numpy as np

from quantize.blocks.half import f32_to_f16_bits
from quantize.blocks.jit import kernel
from quantize.tensors import Array, QType

__all__ = ["MOVABLE", "PartFormat", "Parts", "part_format", "store_f16"]

MOVABLE: tuple[QType, ...] = (
    QType.Q2_K,
    QType.Q3_K,
    QType.Q4_K,
    QType.Q5_K,
    QType.Q6_K,
    QType.Q4_0,
    QType.Q5_0,
    QType.Q8_0,
    QType.IQ4_NL,
    QType.IQ4_XS,
    QType.Q1_0,
    QType.Q2_0,
)
"""The formats whose parts can be moved. The module `quantize.blocks.q4_k` offers `PARTS` for Q4_K, and so on."""


@dataclass(frozen=True, eq=False)
class Parts:
    """The parts of the blocks of one block column, a block for each of `n` rows.

    `codes` uint8 [n, block_size]; `scales` and `mins` [n, n_sub], whole numbers in float32; `factors` float32 [n, 2]: d
    and dmin, which float16 holds. A format without mins has zeros for them, and for dmin.
    """

    codes: Array
    scales: Array
    mins: Array
    factors: Array


@dataclass(frozen=True, eq=False)
class PartFormat:
    """How the blocks of a format come apart, and the limits within which each part can move.

    Codes are indices of `levels`, float32 and ascending. Scales lie between `least_scale` and `most_scale`, mins
    between 0 and `most_min`, which is 0 where there are none. `split_kernel(blocks, codes, scales, mins, factors)`
    fills the parts (see `Parts`) of blocks uint8 [n, type_size]; `join_kernel`, with the blocks last, is its reverse.
    """

    qtype: QType
    block_size: int
    type_size: int
    n_sub: int
    levels: Array
    least_scale: int
    most_scale: int
    most_min: int
    split_kernel: Callable[[Array, Array, Array, Array, Array], None]
    join_kernel: Callable[[Array, Array, Array, Array, Array], None]

    @property
    def is_even(self) -> bool:
        """Whether each level is one more than the one below it, so that a code follows by rounding."""
        return bool((np.diff(self.levels) == 1).all())

    def split(self, blocks: Array) -> Parts:
        """The parts of blocks uint8 [n, type_size]."""
        n = len(blocks)
        codes = np.empty((n, self.block_size), np.uint8)
        scales, mins = np.zeros((2, n, self.n_sub), np.float32)
        factors = np.zeros((n, 2), np.float32)
        self.split_kernel(blocks, codes, scales, mins, factors)
        return Parts(codes, scales, mins, factors)

    def join(self, parts: Parts) -> Array:
        """The blocks of parts within their limits: uint8 [n, type_size], for which `split` gives the parts again."""
        blocks = np.zeros((len(parts.codes), self.type_size), np.uint8)
        self.join_kernel(parts.codes, parts.scales, parts.mins, parts.factors, blocks)
        return blocks


@cache
def part_format(qtype: QType) -> PartFormat | None:
    """The parts of a tensor type; None where they cannot be moved."""
    if qtype not in MOVABLE:
        return None
    form: PartFormat = import_module(f"quantize.blocks.{qtype.name.lower()}").PARTS
    return form


@kernel
def store_f16(block: Array, at: int, value: np.float32) -> None:
    """Write a little-endian half to bytes `at` and `at + 1`."""
    bits = f32_to_f16_bits(value)
    block[at] = np.uint8(bits & np.uint16(0xFF))
    block[at + 1] = np.uint8(bits >> np.uint16(8))
