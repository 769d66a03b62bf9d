"""The rules by which codes are chosen on a grid that is fitted; `quantize.codec.encode` takes one.

A rule is told the grid and the weights of a panel. It may keep what it knows of other panels to itself: error feedback,
for instance, encodes one block column after the other and corrects the weights to the right before they are loaded.
"""

from __future__ import annotations

from collections.abc import Callable

from quantize.blocks.base import Grid
from quantize.tensors import Array

Rounding = Callable[[Grid, Array], Array]
"""(grid, tiles float32 [n_tiles, block_size * LANES]) to codes: uint8 like the tiles, each below len(grid.levels)."""


def nearest(grid: Grid, x: Array) -> Array:
    """The codes that ggml chooses, each weight on its own."""
    return grid.round(x)
