"""How blocks of 32 codes are packed after their head: four bits of each in 16 bytes, fifth bits in four bytes before.

head | 4 bytes of fifth bits, if any: bit k is bit 4 of code[k] | 16 bytes: code[k] & 15 | (code[k + 16] & 15) << 4
"""

from __future__ import annotations

from quantize.blocks.jit import inlined, kernel
from quantize.blocks.tiles import LANES, copy_rows, row
from quantize.tensors import Array

QK = 32  # weights of a block


@kernel
def pack_4(head: Array, codes: Array, blocks: Array) -> None:
    """Codes 0..15; see `BlockFormat.pack_kernel`."""
    n_head = head.shape[1]
    for t in range(len(head)):
        copy_rows(head[t], blocks[t])
        _pack_nibbles(codes[t], blocks[t, n_head:])


@kernel
def pack_5(head: Array, codes: Array, blocks: Array) -> None:
    """Codes 0..31; see `BlockFormat.pack_kernel`."""
    n_head = head.shape[1]
    for t in range(len(head)):
        copy_rows(head[t], blocks[t])
        blocks[t, n_head : n_head + 4] = 0
        for k in range(QK):
            code, fifth, shift = row(codes[t], k), blocks[t, n_head + k // 8], k % 8
            for i in range(LANES):
                fifth[i] |= code[i] >> 4 << shift
        _pack_nibbles(codes[t], blocks[t, n_head + 4 :])


@kernel
def _pack_nibbles(codes: Array, nibbles: Array) -> None:
    for k in range(QK // 2):
        low, high, byte = row(codes, k), row(codes, k + 16), nibbles[k]
        for i in range(LANES):
            byte[i] = low[i] & 15 | high[i] << 4


@inlined
def codes_of_5(block: Array, at: int, k: int) -> tuple[int, int]:
    """code[k] and code[k + 16], k < 16, of a block whose fifth bits begin at byte `at`."""
    nibbles = block[at + 4 + k]
    low = nibbles & 15 | (block[at + k // 8] >> (k % 8) & 1) << 4
    high = nibbles >> 4 | (block[at + 2 + k // 8] >> (k % 8) & 1) << 4
    return low, high
