"""What every block format offers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from quantize.tensors import Array, QType


@dataclass(frozen=True)
class BlockFormat:
    """One ggml block format: its size and the functions that fill and read rows of blocks.

    `encode(weights, importance, out)`: weights [n_rows, n_per_row] as uint16 (bits of bfloat16) or float32,
    C-contiguous, n_per_row a multiple of `block_size`; importance [n_per_row] float32 or None; out uint8
    [n_rows, n_per_row // block_size * type_size], C-contiguous, overwritten. Releases the GIL, allocates a few MB at
    most, and gives the bytes of ggml's `ggml_quantize_chunk` (x86-64 release build).

    `decode(blocks, out)`: the reverse, blocks uint8 [n_rows, row bytes] to out float32 [n_rows, n_per_row]; the values
    of `gguf.dequantize`.
    """

    qtype: QType
    block_size: int  # weights
    type_size: int  # bytes
    encode: Callable[[Array, Array | None, Array], None]
    decode: Callable[[Array, Array], None]
    uses_importance: bool = True
