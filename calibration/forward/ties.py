"""Which experts a router chooses where several have the same probability: those that llama.cpp chooses."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["best", "first_equal"]

FEW = 16
"""Up to so many elements are sorted by insertion, which keeps the order of equal ones."""


def best(probs: Tensor, n_used: int) -> Tensor:
    """The experts with the highest probabilities of f32 [T, E], best first: int64 [T, n_used].

    llama.cpp sorts them with std::sort (ggml-cpu/ops.cpp: ggml_compute_forward_argsort_f32). With up to 16 experts a
    tie goes to the lower index, with more to those that the partitions of libstdc++'s introsort have left in front.
    """
    ordered = probs.sort(dim=-1, descending=True, stable=True)
    ids = ordered.indices[:, :n_used]
    if FEW < probs.shape[-1] != n_used:
        undecided = (ordered.values[:, n_used - 1] == ordered.values[:, n_used]).nonzero()[:, 0]
        if len(undecided):
            parted = torch.tensor([_parted(row) for row in probs[undecided].tolist()], device=probs.device)
            order = probs[undecided].gather(-1, parted).sort(dim=-1, descending=True, stable=True).indices
            ids = ids.index_copy(0, undecided, parted.gather(-1, order)[:, :n_used])
    return ids


def first_equal(rows: Tensor) -> Tensor:
    """The index of the first row of [n, D] that is equal to each row: int64 [n]."""
    groups = torch.unique(rows.detach(), dim=0, return_inverse=True)[1]
    places = torch.arange(len(groups), device=groups.device)
    return torch.full_like(places, len(places)).scatter_reduce(0, groups, places, "amin")[groups]


def _parted(p: list[float]) -> list[int]:
    """The indices of finite numbers as introsort's partitions leave them: runs of at most `FEW`, the high ones first.

    The pivot is the median of the second, the middle and the last element. Introsort would turn to a heap where runs
    get far smaller on one side than on the other; probabilities of experts do not come to that.
    """
    ids = list(range(len(p)))
    runs = [(0, len(p))]
    while runs:
        first, last = runs.pop()
        if last - first <= FEW:
            continue
        median = _median(p, ids, first + 1, (first + last) // 2, last - 1)
        ids[first], ids[median] = ids[median], ids[first]
        pivot, low, high = p[ids[first]], first + 1, last
        while True:
            while p[ids[low]] > pivot:
                low += 1
            high -= 1
            while pivot > p[ids[high]]:
                high -= 1
            if low >= high:
                break
            ids[low], ids[high] = ids[high], ids[low]
            low += 1
        runs += [(first, low), (low, last)]
    return ids


def _median(p: list[float], ids: list[int], a: int, b: int, c: int) -> int:
    """The place of the median of three; of equal ones the place that libstdc++ takes."""
    x, y, z = p[ids[a]], p[ids[b]], p[ids[c]]
    if x > y:
        return b if y > z else c if x > z else a
    return a if x > z else c if y > z else b
