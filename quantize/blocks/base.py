"""The interfaces of formats: blocks whose weights are coded one by one, those coded in groups, and plain floats."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from quantize.blocks.error_weights import TileGuide
from quantize.blocks.jit import kernel
from quantize.blocks.tiles import LANES, Columns, row, store
from quantize.tensors import Array, QType


@dataclass(frozen=True, eq=False)
class Grid:
    """The values that the blocks of some tiles can take: value = scale * levels[code] - min.

    `scales` and `mins` are those that a reader will see: float32 [n_tiles, n_sub, LANES], one for each sub-block; no
    `mins` are zeros. `levels` is float32 [n_codes], and every code below n_codes can be packed. `head` holds the bytes
    of each block that are not codes, in the block's order: uint8 [n_tiles, n_head, LANES].

    `round(x)` gives the codes of tiles x, float32 [n_tiles, block_size * LANES], as ggml chooses them: uint8 like x.
    They need not be the nearest: ggml rounds some formats with a scale that is not rounded to float16.
    """

    head: Array
    levels: Array
    scales: Array
    mins: Array | None
    round: Callable[[Array], Array]

    def decode(self, codes: Array) -> Array:
        """The weights, as tiles, that a reader will see of codes: bit for bit those of the packed blocks."""
        x = np.empty(codes.shape, np.float32)
        mins = np.zeros_like(self.scales) if self.mins is None else self.mins
        _decode(self.levels, self.scales, mins, codes, x)
        return x


@kernel
def _decode(levels: Array, scales: Array, mins: Array, codes: Array, x: Array) -> None:
    n_tiles, n_sub, _ = scales.shape
    n = x.shape[1] // (n_sub * LANES)
    for t in range(n_tiles):
        for j in range(n_sub):
            scale, minimum = scales[t, j], mins[t, j]
            for k in range(j * n, (j + 1) * n):
                code, values = row(codes[t], k), row(x[t], k)
                for i in range(LANES):
                    values[i] = scale[i] * levels[code[i]] - minimum[i]


@dataclass(frozen=True)
class BlockFormat:
    """One ggml block format: its size, and the three steps and the way back that make it.

    `fit(x, guide)`: tiles float32 [n_tiles, block_size * LANES] (see `tiles`) to the grid of each block; statistics
    of the panel's inputs weigh the errors. x is finite.

    `pack_kernel(head, codes, blocks)`: `Grid.head` and codes, uint8 [n_tiles, block_size * LANES], to blocks, uint8
    [n_tiles, type_size, LANES].

    `unpack_kernel(blocks, values)`: blocks, uint8 [n, type_size], to float32 [n, block_size].

    Fit, `Grid.round` and pack together give the bytes of ggml's `ggml_quantize_chunk` (x86-64 release build). All
    release the GIL, and allocate a few bytes per weight that they are given.
    """

    qtype: QType
    block_size: int  # weights
    type_size: int  # bytes
    fit: Callable[[Array, TileGuide | None], Grid]
    pack_kernel: Callable[[Array, Array, Array], None]
    unpack_kernel: Callable[[Array, Array], None]
    uses_importance: bool = True
    needs_importance: bool = False  # never; see `GroupFormat`
    weighs_rows: bool = False  # whether `fit` takes `TileGuide.row_squares` into account

    def pack(self, grid: Grid, codes: Array, columns: Columns, blocks: Array) -> None:
        """Write the blocks of a panel.

        Args:
            grid: what `fit` made of the panel.
            codes: uint8 [n_tiles, block_size * LANES].
            columns: the panel's block columns.
            blocks: uint8 [n_rows, row bytes], C-contiguous: the rows of the panel, whole.
        """
        tiles = np.empty((len(codes), self.type_size, LANES), np.uint8)
        self.pack_kernel(grid.head, codes, tiles)
        store(tiles, columns, blocks)

    def decode(self, blocks: Array, out: Array) -> None:
        """Blocks uint8 [n_rows, row bytes] to out float32 [n_rows, n_per_row]: the values of `gguf.dequantize`."""
        self.unpack_kernel(blocks.reshape(-1, self.type_size), out.reshape(-1, self.block_size))


@dataclass(frozen=True)
class GroupFormat:
    """A format in which a code stands for several weights, an entry of a codebook: no code follows from one weight.

    So there is no `Grid`, and no rounding can be chosen: the search for a scale is a search for codes, too.

    `encode_kernel(x, guide)`: tiles float32 [n_tiles, block_size * LANES] to blocks, uint8 [n_tiles, type_size, LANES];
    these are the bytes of ggml's `ggml_quantize_chunk` (x86-64 release build). x is finite.

    `unpack_kernel(blocks, values)`: blocks, uint8 [n, type_size], to float32 [n, block_size].
    """

    qtype: QType
    block_size: int  # weights
    type_size: int  # bytes
    encode_kernel: Callable[[Array, TileGuide | None], Array]
    unpack_kernel: Callable[[Array, Array], None]
    uses_importance: bool = True
    needs_importance: bool = False  # ggml aborts without
    weighs_rows: bool = False  # whether `encode_kernel` takes `TileGuide.row_squares` into account

    def encode(self, x: Array, guide: TileGuide | None, columns: Columns, blocks: Array) -> None:
        """Write the blocks of a panel: see `BlockFormat.pack`."""
        store(self.encode_kernel(x, guide), columns, blocks)

    def decode(self, blocks: Array, out: Array) -> None:
        """Blocks uint8 [n_rows, row bytes] to out float32 [n_rows, n_per_row]: the values of `gguf.dequantize`."""
        self.unpack_kernel(blocks.reshape(-1, self.type_size), out.reshape(-1, self.block_size))


@dataclass(frozen=True)
class FloatFormat:
    """A format without grid: each weight is converted on its own, so that there is nothing to fit or to choose.

    `encode(weights, out)`: [n_rows, n_per_row] uint16 (bits of bfloat16) or float32 to uint8 [n_rows, row bytes], both
    C-contiguous. `decode(blocks, out)`: the reverse, to float32.
    """

    qtype: QType
    type_size: int  # bytes
    encode: Callable[[Array, Array], None]
    decode: Callable[[Array, Array], None]
    block_size: int = 1
    uses_importance: bool = False
    needs_importance: bool = False
