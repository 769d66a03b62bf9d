"""The rules by which codes are chosen on a grid that is fitted; `quantize.codec.encode` takes one.

A rule sees the grid and the weights of one panel: with a guide the panels of some rows come from left to right, without
one the rows of a panel are not those of the matrix. `codec` holds the only loop for such rules. A scheme that corrects
the columns to the right (error feedback) is no rule: it takes the same steps itself, column by column (`tiles.load`,
`BlockFormat.fit`, a choice of codes, `Grid.decode`, `BlockFormat.pack`), as tests/quantize/blocks/test_steps.py shows.
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
