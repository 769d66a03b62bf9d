"""Decoders of the types whose codes are numbers, in blocks with one scale: Q8_0, Q4_0 to Q5_1, Q1_0, Q2_0, TQ1_0, ...

Each takes blocks uint8 [n, type_size] to f32 [n, block_size], in the order of operations of the module of the same name
in `quantize.blocks`.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from calibration.decoders.bits import fields, halves, interleaved, table_on
from quantize.blocks.tq1_0 import RUNS
from quantize.tensors import Array


def q8_0(blocks: Tensor) -> Tensor:
    """d * code."""
    return blocks[:, 2:].view(torch.int8).float().mul_(halves(blocks, 0))


def q4_0(blocks: Tensor) -> Tensor:
    """d * (code - 8)."""
    return _nibbles(blocks[:, 2:]).float().sub_(8).mul_(halves(blocks, 0))


def q4_1(blocks: Tensor) -> Tensor:
    """d * code + m."""
    return _nibbles(blocks[:, 4:]).float().mul_(halves(blocks, 0)).add_(halves(blocks, 2))


def q5_0(blocks: Tensor) -> Tensor:
    """d * (code - 16)."""
    return _fives(blocks[:, 2:]).float().sub_(16).mul_(halves(blocks, 0))


def q5_1(blocks: Tensor) -> Tensor:
    """d * code + m."""
    return _fives(blocks[:, 4:]).float().mul_(halves(blocks, 0)).add_(halves(blocks, 2))


def _nibbles(packed: Tensor) -> Tensor:
    """Codes uint8 [n, 32] of 16 bytes, lower halves first."""
    return fields(packed, 4).flatten(1)


def _fives(packed: Tensor) -> Tensor:
    """Codes uint8 [n, 32] of four bytes with their fifth bits and 16 bytes with the rest."""
    return _nibbles(packed[:, 4:]).bitwise_or_(interleaved(packed[:, :4], 1).flatten(1) << 4)


def q1_0(blocks: Tensor) -> Tensor:
    """d or -d."""
    return interleaved(blocks[:, 2:], 1).flatten(1).float().mul_(2).sub_(1).mul_(halves(blocks, 0))


def q2_0(blocks: Tensor) -> Tensor:
    """d * (code - 1)."""
    return interleaved(blocks[:, 2:], 2).flatten(1).float().sub_(1).mul_(halves(blocks, 0))


def tq2_0(blocks: Tensor) -> Tensor:
    """d * (code - 1)."""
    codes = fields(blocks[:, :64].reshape(-1, 2, 32), 2).flatten(1)
    return codes.float().sub_(1).mul_(halves(blocks, 64))


def tq1_0(blocks: Tensor) -> Tensor:
    """d * (code - 1); multiplying by a power of 3 moves the digits before the wanted one over the top of the byte."""
    powers = table_on(blocks.device, _powers)
    runs = []
    for first, _, n, n_digits in RUNS:
        left = blocks[:, None, first : first + n] * powers[:n_digits, None]
        runs.append((left.short() * 3 >> 8).flatten(1))
    return torch.cat(runs, dim=1).float().sub_(1).mul_(halves(blocks, 52))


def _powers() -> Array:
    return np.array([1, 3, 9, 27, 81], np.uint8)
