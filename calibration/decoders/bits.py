"""Numbers out of packed bytes: halves, fields of bits, entries of tables.

Nothing here moves data from or to the host but tables, once for each device: shifts are made where they are needed.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from quantize.tensors import Array

__all__ = ["fields", "halves", "interleaved", "looked_up", "table_on", "words"]


def halves(blocks: Tensor, at: int) -> Tensor:
    """The little-endian float16 at byte `at` (even) of blocks uint8 [n, bytes], widened: f32 [n, 1]."""
    return blocks[:, at : at + 2].contiguous().view(torch.float16).float()


def words(blocks: Tensor, first: int, last: int) -> Tensor:
    """The little-endian uint16 in the bytes `first` (even) to `last` - 1 of blocks, as int32 [n, n_bytes / 2]."""
    return blocks[:, first:last].contiguous().view(torch.int16).int().bitwise_and_(0xFFFF)


def fields(packed: Tensor, width: int) -> Tensor:
    """Split bytes [..., n] into fields of `width` bits, lowest first, each for all bytes: uint8 [..., 8 / width, n]."""
    return (packed.unsqueeze(-2) >> _shifts(width, packed)[:, None]).bitwise_and_((1 << width) - 1)


def interleaved(packed: Tensor, width: int) -> Tensor:
    """Split bytes [..., n] into fields of `width` bits, lowest first, byte after byte: uint8 [..., n, 8 / width]."""
    return (packed.unsqueeze(-1) >> _shifts(width, packed)).bitwise_and_((1 << width) - 1)


def _shifts(width: int, like: Tensor) -> Tensor:
    return torch.arange(0, 8, width, dtype=torch.uint8, device=like.device)


def looked_up(table: Tensor, indices: Tensor) -> Tensor:
    """The entries [...] or [..., k] of a table [n] or [n, k] at indices of any integer type [...]."""
    return table.index_select(0, indices.int().flatten()).view(*indices.shape, *table.shape[1:])


@cache
def table_on(device: torch.device, make: Callable[[], Array]) -> Tensor:
    """The table that `make` gives, on a device; it is made and copied once."""
    return torch.from_numpy(make().copy()).to(device)
