"""The codebooks of IQ1 to IQ3: which groups of weights have a code, and which entries are near those that have none.

A group of 8 weights (4 in IQ3) is first rounded on its own: each weight to a *level*, 0..2 (0..7 in IQ3). The levels,
packed into one number, are the *pattern* of the group. If the codebook has it, its index is the code. If not, the
entries nearest to it by the squared distance of levels are compared by their errors, in a fixed order: by distance,
then by index. Two entries can be equally near, so a list holds whole *shells* of equal distance.

Source: ggml-quants.c, iq2xs_init_impl and iq3xs_init_impl. The entries themselves are in the gguf library.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import gguf.quants
import numpy as np

from quantize.tensors import Array, QType

N_SHELLS = {
    QType.IQ1_S: 3,
    QType.IQ1_M: 3,
    QType.IQ2_XXS: 2,
    QType.IQ2_XS: 2,
    QType.IQ2_S: 1,
    QType.IQ3_XXS: 2,
    QType.IQ3_S: 3,
}
"""How many shells a list has: ggml's `nwant`."""


@dataclass(frozen=True, eq=False)
class Codebook:
    """The entries, and the neighbours of every pattern that is none: all that can occur in an encoder.

    A level takes `bits` of a pattern, 2 where there are 3 levels and 3 where there are 8; the group's first weight has
    the lowest.
    """

    bits: int
    levels: Array  # uint8 [n_entries, group]
    patterns: Array  # uint16 [n_entries]: the levels, packed
    index: Array  # int32 [1 << bits * group], by pattern: the entry's index; else -1 - list; 0 for levels never met
    starts: Array  # int32 [n_lists + 1]: list i is neighbours[starts[i] : starts[i + 1]]
    neighbours: Array  # uint16: indices of entries

    def padded(self, width: int) -> tuple[Array, Array]:
        """Lists that vectors of `width` can take in whole: starts int32 [n_lists + 1], neighbours uint16.

        Each list is filled up with its last entry to a multiple of `width`.
        """
        counts = np.diff(self.starts)
        rows = -(-counts // width)
        starts = np.concatenate([[0], np.cumsum(rows * width)])
        of_list = np.repeat(np.arange(len(counts)), rows * width)
        within = np.arange(starts[-1]) - starts[of_list]
        picked = self.starts[of_list] + np.minimum(within, counts[of_list] - 1)
        return starts.astype(np.int32), self.neighbours[picked]


@cache
def codebook(qtype: QType) -> Codebook:
    """The codebook of a type of IQ1 to IQ3; it is made once, in a few hundredths of a second."""
    form = getattr(gguf.quants, qtype.name)
    form.init_grid()
    n_levels = len(form.grid_map)
    levels = np.searchsorted(form.grid_map, form.grid.reshape(form.grid_shape)).astype(np.uint8)
    bits = (n_levels - 1).bit_length()
    distances = _distances(levels, n_levels)
    is_off = distances.min(axis=1) > 0
    distances = distances[is_off]
    starts, neighbours = _shells(distances, N_SHELLS[qtype])
    patterns = _pack(levels, bits)
    index = np.zeros(1 << bits * levels.shape[1], np.int32)
    index[patterns] = np.arange(len(levels))
    index[_pack(_all_groups(n_levels, levels.shape[1]), bits)[is_off]] = -1 - np.arange(len(distances))
    return Codebook(bits, levels, patterns, index, starts, neighbours)


def _all_groups(n_levels: int, size: int) -> Array:
    """Every group of levels there is, uint8 [n_levels ** size, size], the last weight's level changing first."""
    return np.indices((n_levels,) * size, np.uint8).reshape(size, -1).T


def _pack(levels: Array, bits: int) -> Array:
    """Levels [n, group] to patterns, uint16 [n]."""
    shifts = np.arange(levels.shape[1], dtype=np.uint16) * np.uint16(bits)
    packed: Array = np.bitwise_or.reduce(levels.astype(np.uint16) << shifts, axis=1)
    return packed


def _distances(levels: Array, n_levels: int) -> Array:
    """Squared distances of levels, uint8, of `_all_groups` to the entries: those of two halves, added."""
    size = levels.shape[1] // 2
    halves = _all_groups(n_levels, size)[:, None].astype(np.int16)
    first, second = (
        np.square(halves - part).sum(axis=-1).astype(np.uint8)
        for part in (levels[None, :, :size], levels[None, :, size:])
    )
    distances: Array = (first[:, None] + second).reshape(-1, len(levels))
    return distances


def _shells(distances: Array, n_shells: int) -> tuple[Array, Array]:
    """The lists of neighbours: where each begins, and the entries, by distance and index."""
    outermost = distances.min(axis=1, keepdims=True)
    for _ in range(n_shells - 1):
        beyond = np.where(distances > outermost, distances, np.uint8(255))
        outermost = beyond.min(axis=1, keepdims=True)
    lists, entries = np.nonzero(distances <= outermost)
    order = np.argsort(lists * 256 + distances[lists, entries], kind="stable")
    starts = np.concatenate([[0], np.cumsum(np.bincount(lists))])
    return starts.astype(np.int32), entries[order].astype(np.uint16)
