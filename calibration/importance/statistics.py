"""What an importance matrix looks like in figures: those of `llama-imatrix --show-statistics`, to the digit.

Formulas and names are those of llama.cpp's tools/imatrix/imatrix.cpp (compute_statistics, compute_cossim,
show_statistics). It adds float32 one after the other, and so does this.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from calibration.importance.imatrix import Entry, Imatrix, Vector
from quantize.tensors import names_experts

__all__ = [
    "ExpertStatistics",
    "LayerStatistics",
    "Statistics",
    "TensorStatistics",
    "layer_statistics",
    "tensor_statistics",
]

INACTIVE = np.float32(1e-5)
"""A mean square up to which llama-imatrix calls a column inactive."""

_LAYER = re.compile(r"blk\.([0-9]{1,9})\.")


@dataclass(frozen=True)
class Statistics:
    """Figures of the mean squares of the inputs of some columns, in the words and the order of llama-imatrix.

    `active` and `zd` are shares (1 is all): of the columns that are not inactive, and of those that lie more than one
    standard deviation above the mean. `entropy` is in bits, `entropy_norm` its share of what equal columns would have.
    """

    total: float
    """The sum over the columns: llama-imatrix's Σ(Act²)."""
    least: float
    most: float
    mean: float
    stddev: float
    active: float
    n: int
    """Columns; of a stack of experts, those of the experts that tokens reached."""
    entropy: float
    entropy_norm: float
    zd: float


@dataclass(frozen=True)
class ExpertStatistics:
    """The figures of one expert; `statistics` is None where no token reached it."""

    xid: int
    n_tokens: int
    statistics: Statistics | None


@dataclass(frozen=True)
class TensorStatistics:
    """The figures of one tensor; `layer` and `tensor` are the parts of its name that llama-imatrix shows.

    `bid` is the number of the layer, None where there is none. `cossim` is the cosine of the angle between its sums and
    those of the same tensor in the layer before, 0 where there is none and NaN where one of them is zero. `n_tokens` is
    the number for all experts together; of a legacy file, calls of llama-imatrix.
    """

    name: str
    layer: str
    tensor: str
    bid: int | None
    n_tokens: int
    statistics: Statistics
    cossim: float
    experts: tuple[ExpertStatistics, ...]


@dataclass(frozen=True)
class LayerStatistics:
    """Means over the tensors of a layer, weighted with their columns."""

    bid: int
    total: float
    zd: float
    cossim: float


def tensor_statistics(imatrix: Imatrix) -> list[TensorStatistics]:
    """The figures of each tensor that tokens reached, in llama-imatrix's order: by tensor, the largest sum first."""
    found = []
    for name, entry in imatrix.entries.items():
        means, is_seen = _means(entry)
        if not is_seen.any():
            continue
        (whole,) = _statistics(means.reshape(1, -1))
        layer, tensor, bid = _places(name)
        found.append(
            TensorStatistics(
                name=name,
                layer=layer,
                tensor=tensor,
                bid=bid,
                n_tokens=int(entry.counts.sum()),
                statistics=whole,
                cossim=_cossim(name, imatrix.entries),
                experts=_experts(entry, means, is_seen) if _has_experts(name, imatrix) else (),
            )
        )
    return sorted(found, key=lambda one: (one.tensor.encode(), -one.statistics.total, one.name))


def layer_statistics(tensors: Iterable[TensorStatistics]) -> list[LayerStatistics]:
    """The figures of each layer, of those of its tensors in the order of `tensor_statistics`."""
    of_layer: dict[int, list[TensorStatistics]] = {}
    for one in tensors:
        if one.bid is not None:
            of_layer.setdefault(one.bid, []).append(one)
    return [_layer(bid, of_layer[bid]) for bid in sorted(of_layer)]


def _layer(bid: int, tensors: Sequence[TensorStatistics]) -> LayerStatistics:
    sums = np.zeros(3, np.float32)
    n_all = 0
    with np.errstate(all="ignore"):
        for one in tensors:
            figures = one.statistics
            sums += np.float32(figures.n) * np.array([figures.total, figures.zd, one.cossim], np.float32)
            n_all += figures.n
        total, zd, cossim = (sums / np.float32(n_all)).tolist()
    return LayerStatistics(bid, total, zd, cossim)


def _has_experts(name: str, imatrix: Imatrix) -> bool:
    """Whether there are counts of experts; a legacy file has none."""
    return not imatrix.legacy and (names_experts(name) or len(imatrix.entries[name].counts) > 1)


def _means(entry: Entry) -> tuple[Vector, npt.NDArray[np.bool_]]:
    """Mean squares [n_seen, n_per_row] of the matrices that tokens reached, and which these are [n_mat]."""
    is_seen = entry.counts > 0
    with np.errstate(all="ignore"):
        means = entry.sums[is_seen] / entry.counts[is_seen].astype(np.float32)[:, None]
    return means, is_seen


def _experts(entry: Entry, means: Vector, is_seen: npt.NDArray[np.bool_]) -> tuple[ExpertStatistics, ...]:
    figures = iter(_statistics(means))
    return tuple(
        ExpertStatistics(xid, int(n_tokens), next(figures) if seen else None)
        for xid, (n_tokens, seen) in enumerate(zip(entry.counts, is_seen, strict=True))
    )


def _statistics(means: Vector) -> list[Statistics]:
    """The figures of each row [n_row, n]."""
    n = means.shape[1]
    size = np.float32(n)
    with np.errstate(all="ignore"):
        total = _sum(means)
        mean = total / size
        stddev = np.sqrt(np.maximum(np.float32(0), _sum(means * means) / size - mean * mean))
        inactive = (np.abs(means) <= INACTIVE).sum(axis=1).astype(np.float32)
        share = np.where(total[:, None] > 0, means / total[:, None], np.float32(0))
        # the C library's log2f is exact but for the last bit, and so is a logarithm in double precision
        bits = np.log2(np.where(share > 0, share, 1).astype(np.float64)).astype(np.float32)
        entropy = -_sum(share * bits)
        above = (means - mean[:, None]) / stddev[:, None] > 1
        zd = np.where(stddev > 0, above.sum(axis=1), 0).astype(np.float32) / size
        columns = [
            *(total, means.min(axis=1), means.max(axis=1), mean, stddev, 1 - inactive / size),
            np.full(len(means), n),
            *(entropy, entropy.astype(np.float64) / (np.log2(n) or 1), zd),
        ]
    return [Statistics(*row) for row in zip(*(column.tolist() for column in columns), strict=True)]


def _sum(values: Vector) -> Vector:
    """The sum of each row, added one after the other in float32, as std::accumulate adds."""
    return np.asarray(np.add.accumulate(values, axis=1, dtype=np.float32)[:, -1])


def _cossim(name: str, entries: Mapping[str, Entry]) -> float:
    found = _LAYER.search(name)
    if found is None:
        return 0.0
    before = entries.get(f"{name[: found.start(1)]}{int(found[1]) - 1}{name[found.end(1) :]}")
    here = entries[name]
    if before is None or not before.counts.any() or before.sums.size != here.sums.size:
        return 0.0
    one, other = here.sums.reshape(1, -1), before.sums.reshape(1, -1)
    with np.errstate(all="ignore"):
        magnitudes = np.sqrt(_sum(one * one)) * np.sqrt(_sum(other * other))
        return float((_sum(one * other) / magnitudes)[0])


def _places(name: str) -> tuple[str, str, int | None]:
    """Layer and tensor as llama-imatrix cuts them out of a name (process_tensor_name), and the layer's number."""
    parts = name.split(".")
    layers = [after for word, after in pairwise(parts) if word == "blk"]
    tensors = [before for before, word in pairwise(parts) if word == "weight"]
    layer = layers[0] if layers else ""
    bid = int(layer) if re.fullmatch(r"[0-9]{1,9}", layer) else None
    return layer or "-", tensors[0] if tensors and tensors[0] else name, bid
