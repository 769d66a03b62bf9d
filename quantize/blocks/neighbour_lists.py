"""The lists of neighbours of IQ2's codebooks as kernels take them: see `neighbours`."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import NamedTuple

import numpy as np

from quantize.blocks.codebook import Codebook, codebook
from quantize.blocks.jit import kernel
from quantize.blocks.neighbour_lines import GROUP, WIDTH
from quantize.blocks.neighbour_steps import steps_of
from quantize.tensors import Array, QType

LENGTH_BITS, LENGTH = 12, 4095  # of a place


class Lists(NamedTuple):
    """A codebook as kernels take it, each list in two versions."""

    table: Array  # int32 [2 << 16]: two for each pattern, the steps (see `steps_of`), and the place of its short list
    whole: Array  # int32 [1 << 16], by pattern: the place of the whole list
    is_shorter: bool  # whether any list could be shortened
    longest: int  # list
    patterns: Array  # uint16 [n, WIDTH]; a place is the first of a list's rows << LENGTH_BITS | its length


@cache
def lists(qtype: QType) -> Lists:
    """The lists of IQ2_XXS, IQ2_XS and IQ2_S."""
    book = codebook(qtype)
    starts, shortened = shortened_lists(book)
    short = replace(book, starts=starts, neighbours=shortened)
    (starts_1, neighbours_1), (starts_2, neighbours_2) = short.padded(WIDTH), book.padded(WIDTH)
    table = np.stack([steps_of(book), _places(short, starts_1)], axis=1)
    return Lists(
        table.reshape(-1),
        _places(book, starts_2 + starts_1[-1]),
        len(shortened) < len(book.neighbours),
        int(np.diff(book.starts).max()),
        book.patterns[np.concatenate([neighbours_1, neighbours_2])].reshape(-1, WIDTH),
    )


def _places(book: Codebook, starts: Array) -> Array:
    """Where the lists of patterns lie, by pattern; 0 for entries."""
    places = (starts[:-1] // WIDTH << LENGTH_BITS) + np.diff(book.starts)
    by_pattern: Array = np.where(book.index < 0, places[-1 - np.minimum(book.index, -1)], 0)
    return by_pattern.astype(np.int32)


def shortened_lists(book: Codebook) -> tuple[Array, Array]:
    """The lists without the neighbours that lie beyond an earlier one: `Codebook.starts` and `Codebook.neighbours`."""
    off = np.flatnonzero(book.index < 0)
    off = off[np.argsort(-book.index[off])]  # patterns, by list
    levels = (off[:, None] >> 2 * np.arange(GROUP) & 3).astype(np.int8)
    counts = np.diff(book.starts)
    of_list = np.repeat(np.arange(len(off)), counts)
    moves = book.levels[book.neighbours].astype(np.int8) - levels[of_list]
    # a move is 1 or 2 levels up or down: as bits, a nearer move is a part of a farther one
    bits = np.zeros(len(moves), np.uint32)
    for k in range(GROUP):
        for step, bit in ((1, 1), (2, 2), (-1, 4), (-2, 8)):
            reached = moves[:, k] * np.sign(step) >= abs(step)
            bits |= (reached * (bit << 4 * k)).astype(np.uint32)
    is_kept = np.ones(len(moves), bool)
    _drop(bits, book.starts, is_kept)
    starts = np.concatenate([[0], np.cumsum(np.bincount(of_list[is_kept], minlength=len(off)))])
    return starts.astype(np.int32), book.neighbours[is_kept]


@kernel
def _drop(bits: Array, starts: Array, is_kept: Array) -> None:
    for number in range(len(starts) - 1):
        for j in range(starts[number], starts[number + 1]):
            for earlier in range(starts[number], j):
                if is_kept[earlier] and bits[earlier] & ~bits[j] == 0:
                    is_kept[j] = False
                    break
