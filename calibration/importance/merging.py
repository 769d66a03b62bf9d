"""Several importance matrices as one: the sums and tokens of all texts together, as llama-imatrix adds `--in-file`s.

Sums and counts are added, datasets stand one after the other. Like there, the result is counted in chunks of a size
that the caller gives, whatever the inputs were counted in; a legacy file tells calls instead of tokens, and each call
is taken for one such chunk. A tensor that some inputs lack is what the others have.

The order of the inputs decides the order of the datasets and, from three inputs on, the last digit of a sum, because
float32 is added one after the other; nothing else. In one case llama-imatrix has an order where this has none: it
refuses a file with one count for all experts (made from a legacy one) behind a file with a count for each.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from calibration.importance.imatrix import Entry, Imatrix
from quantize.containers.untrusted import printable, quoted
from quantize.exceptions import ImatrixError

__all__ = ["merged"]

MOST = 2**31 - 1
"""Tokens of a chunk, and chunks of a matrix: both are 32-bit integers in llama-imatrix."""

OTHER_MODEL = "merge matrices of one model"


def merged(imatrices: Iterable[Imatrix], chunk_size: int = 512) -> Imatrix:
    """The sum of importance matrices; the inputs stay as they are, and are taken one by one.

    Args:
        imatrices: at least one.
        chunk_size: tokens of a chunk, in which the result is counted.

    Raises:
        ImatrixError: there is none; a tensor has other sizes in one than in another, which the message names; the sums
            are too large for a file.

    >>> one = Imatrix({"output.weight": Entry(np.ones((1, 2), np.float32), np.array([512]))}, ["a.txt"])
    >>> both = merged([one, one])
    >>> both.entries["output.weight"].counts.tolist(), both.chunk_count, both.datasets
    ([1024], 2, ['a.txt', 'a.txt'])
    """
    if not 1 <= chunk_size <= MOST:
        raise ImatrixError(
            f"chunks of {quoted(chunk_size)} tokens", "do not exist", "set {setting} to 512", setting="ctx"
        )
    entries: dict[str, Entry] = {}
    first_in: dict[str, str] = {}
    datasets: list[str] = []
    for imatrix in imatrices:
        place = imatrix.file or "imatrix"
        for name, entry in imatrix.entries.items():
            told = f"{place}: {printable(name)}"
            counted = _counted(told, imatrix, entry, chunk_size)
            before = entries.get(name)
            if before is not None:
                counted = _sum(told, before, counted, first_in[name])
            _refuse_overflow(told, counted, chunk_size)
            entries[name] = counted
            first_in.setdefault(name, place)
        datasets += imatrix.datasets
    if not entries:
        raise ImatrixError("", "there are no importances to merge")
    most = max(int(entry.counts.max()) for entry in entries.values())
    return Imatrix(entries, datasets, most // chunk_size, chunk_size)


def _counted(told: str, imatrix: Imatrix, entry: Entry, chunk_size: int) -> Entry:
    """A new entry in sums and tokens: a legacy file holds means times calls."""
    scale = chunk_size if imatrix.legacy else 1
    if (entry.counts < 0).any() or int(entry.counts.max()) * scale >= 2**62:
        raise ImatrixError(told, f"has {int(entry.counts.max())} calls: damaged", "make the imatrix anew")
    with np.errstate(over="ignore"):  # found by the caller
        sums = entry.sums * np.float32(scale) + np.float32(0)  # 0 + -0 is 0
    return Entry(sums, entry.counts * scale)


def _sum(told: str, one: Entry, other: Entry, first: str) -> Entry:
    if one.sums.size != other.sums.size:
        raise ImatrixError(told, f"has {other.sums.size} values, and {one.sums.size} in {first}", OTHER_MODEL)
    n_one, n_other = len(one.counts), len(other.counts)
    if n_one != n_other and 1 not in (n_one, n_other):
        raise ImatrixError(told, f"has counts of {n_other} experts, and of {n_one} in {first}", OTHER_MODEL)
    shape = one.sums.shape if n_one > 1 else other.sums.shape
    with np.errstate(over="ignore"):
        sums = one.sums.reshape(shape) + other.sums.reshape(shape)
    return Entry(sums, one.counts + other.counts)  # one count for all experts is added to each


def _refuse_overflow(told: str, entry: Entry, chunk_size: int) -> None:
    if not np.isfinite(entry.sums).all():
        raise ImatrixError(told, "the sum of its importances is too large for a 32-bit float")
    if int(entry.counts.max()) // chunk_size >= MOST:
        raise ImatrixError(told, f"{int(entry.counts.max())} tokens are too many for a file")
