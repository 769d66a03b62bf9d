"""Groups of 8 weights snapped onto a codebook, as ggml's iq2_find_best_neighbour does it for IQ2.

An encoder tries a sequence of scales. At each, a group has a pattern of rounded levels (see `codebook`); where the
codebook lacks it, the neighbour of least error is taken, by the sum of weight * (scale * (2 * level + 1) - x) ** 2.

Neighbours lie side by side in vectors, each adding its eight terms in ggml's order. Most searches are spared: neighbouring
scales mostly give the same pattern. In exact arithmetic the difference of two neighbours' errors, divided by the scale,
is linear in the scale; so a neighbour that is best at two scales is best between them, and it is best in float32, too,
if at both it is better than all others by more than the sums' rounding errors (`TOLERANCE`).
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np

from quantize.blocks.codebook import codebook
from quantize.blocks.jit import inlined, kernel
from quantize.blocks.lanes import ZERO
from quantize.blocks.tiles import LANES
from quantize.tensors import Array, QType

GROUP = 8
WIDTH = 16  # neighbours side by side
LARGEST = np.uint32(
    0x7F7FFFFF
)  # the bits of FLT_MAX; those of floats that are not negative have the floats' order
INFINITY = np.float32(np.inf)
TOLERANCE = np.float32(2.0**-17)
"""Of the sum of weight * (5 * scale + |x|) ** 2: an error's rounding error is at most 14 * 2**-24 of that."""
TINIEST = np.float32(1e-30)  # sums below are compared one by one: subnormal terms have another precision


class Lists(NamedTuple):
    """A codebook as kernels take it."""

    index: Array  # int32 [1 << 16]: see `Codebook`
    starts: Array  # int32 [n_lists + 1]: where lists begin in `patterns`, multiples of WIDTH
    counts: Array  # int32 [n_lists]: how long they are; behind that they are filled up
    patterns: Array  # uint16


@cache
def lists(qtype: QType) -> Lists:
    """The lists of IQ2_XXS, IQ2_XS and IQ2_S."""
    book = codebook(qtype)
    starts, neighbours = book.padded(WIDTH)
    return Lists(book.index, starts, np.diff(book.starts), book.patterns[neighbours])


@kernel
def scratch_of(lists: Lists) -> Array:
    """Room for `snap`."""
    longest = 0
    for count in lists.counts:
        longest = max(longest, count)
    return np.empty(5 * GROUP + longest + WIDTH, np.float32)


@kernel
def snap(
    rounded: Array, scales: Array, x: Array, root: Array, lists: Lists, scratch: Array, snapped: Array
) -> None:
    """Replace the patterns that are not in the codebook by the best of their neighbours.

    Args:
        rounded: uint16 [n_scales, n_groups, LANES].
        scales: float32 [n_scales, LANES], all greater or all smaller than the one before.
        x: float32 [n_groups * 8 * LANES].
        root: the weights of the errors, like x.
        lists: the codebook.
        scratch: from `scratch_of`.
        snapped: like `rounded`; the patterns that are in the codebook are copied.
    """
    n_scales, n_groups, _ = rounded.shape
    for g in range(n_groups):
        for i in range(LANES):
            is_loaded = False
            first = 0
            while first < n_scales:
                pattern = rounded[first, g, i]
                last = first
                while last + 1 < n_scales and rounded[last + 1, g, i] == pattern:
                    last += 1
                found = lists.index[pattern]
                if found >= 0:
                    for s in range(first, last + 1):
                        snapped[s, g, i] = pattern
                else:
                    if not is_loaded:
                        for k in range(GROUP):
                            scratch[k] = x[(g * GROUP + k) * LANES + i]
                            scratch[GROUP + k] = root[(g * GROUP + k) * LANES + i]
                        is_loaded = True
                    _snap_run(first, last, -1 - found, scales[:, i], lists, scratch, snapped[:, g, i])
                first = last + 1


@kernel
def _snap_run(
    first: int, last: int, number: int, scales: Array, lists: Lists, scratch: Array, snapped: Array
) -> None:
    """Snap a pattern with the list `number` at the scales first .. last; x and weights lie in the scratch."""
    start, n = lists.starts[number], lists.counts[number]
    patterns = lists.patterns[start : lists.starts[number + 1]]
    if first == last:
        snapped[first] = patterns[_nearest(scales[first], n, ZERO, patterns, scratch) >> 1]
        return
    tolerance = _tolerance(max(scales[first], scales[last]), scratch)
    low = first
    at_low = _nearest(scales[low], n, tolerance, patterns, scratch)
    snapped[low] = patterns[at_low >> 1]
    while low < last:
        high = last
        at_high = _nearest(scales[high], n, tolerance, patterns, scratch)
        while (at_low != at_high or at_low & 1 == 0) and high > low + 1:
            high = (low + high) >> 1
            at_high = _nearest(scales[high], n, tolerance, patterns, scratch)
        for s in range(low + 1, high):
            snapped[s] = patterns[at_low >> 1]
        snapped[high] = patterns[at_high >> 1]
        low, at_low = high, at_high


@kernel
def _tolerance(scale: np.float32, scratch: Array) -> np.float32:
    total = ZERO
    for k in range(GROUP):
        reach = np.float32(5) * scale + abs(scratch[k])
        total += scratch[GROUP + k] * reach * reach
    return TOLERANCE * total if total > TINIEST else INFINITY


@kernel
def _nearest(scale: np.float32, n: int, tolerance: np.float32, patterns: Array, scratch: Array) -> int:
    """Twice the place of the first of n patterns with the least error, plus 1 if it alone is within the tolerance."""
    terms, errors = scratch[2 * GROUP : 5 * GROUP], scratch[5 * GROUP :]
    for level in range(3):
        q = np.float32(2 * level + 1)
        for k in range(GROUP):
            diff = scale * q - scratch[k]
            terms[level * GROUP + k] = scratch[GROUP + k] * diff * diff
    for j in range(0, len(patterns), WIDTH):
        _errors(patterns[j : j + WIDTH], terms, errors[j : j + WIDTH])
    for j in range(n, len(patterns)):
        errors[j] = INFINITY
    bits = errors.view(np.uint32)
    least = LARGEST
    for j in range(0, len(patterns), WIDTH):
        least = _least(least, bits[j : j + WIDTH])
    limit = np.uint32(least).view(np.float32) + tolerance
    place, n_close = np.int32(len(patterns)), 0
    for j in range(len(patterns) - WIDTH, -1, -WIDTH):
        part = bits[j : j + WIDTH]
        n_close += _count_up_to(limit, errors[j : j + WIDTH])
        at = _place(least, part)
        place = j + at if at < WIDTH else place
    if place == len(patterns):  # all errors overflow: ggml aborts
        place = 0
    return 2 * place + (n_close == 1)


@kernel
def _errors(patterns: Array, terms: Array, errors: Array) -> None:
    for i in range(WIDTH):
        p = np.int32(patterns[i])
        error = _term(p, 0, terms) + _term(p, 1, terms)
        error = error + _term(p, 2, terms)
        error = error + _term(p, 3, terms)
        error = error + _term(p, 4, terms)
        error = error + _term(p, 5, terms)
        error = error + _term(p, 6, terms)
        errors[i] = error + _term(p, 7, terms)


@inlined
def _term(pattern: np.int32, k: int, terms: Array) -> np.float32:
    term = terms[GROUP + k] if pattern & np.int32(1 << 2 * k) else terms[k]
    return terms[2 * GROUP + k] if pattern & np.int32(2 << 2 * k) else term


@kernel
def _least(least: np.uint32, bits: Array) -> np.uint32:
    for i in range(WIDTH):
        least = bits[i] if bits[i] < least else least
    return least


@kernel
def _count_up_to(limit: np.float32, errors: Array) -> int:
    count = np.int32(0)
    for i in range(WIDTH):
        count += np.int32(1) if errors[i] <= limit else np.int32(0)
    return count


@kernel
def _place(value: np.uint32, bits: Array) -> int:
    """The first place of a value, or WIDTH."""
    place = np.int32(WIDTH)
    for i in range(WIDTH):
        at = np.int32(i) if bits[i] == value else np.int32(WIDTH)
        place = at if at < place else place
    return place
