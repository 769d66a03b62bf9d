"""The contents of an importance matrix: what `llama-imatrix --show-statistics` says of it, and who saw too little."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from calibration.importance.imatrix import ThinExpert
from calibration.importance.imatrix_files import load_imatrix
from calibration.importance.statistics import (
    LayerStatistics,
    Statistics,
    TensorStatistics,
    layer_statistics,
    tensor_statistics,
)
from gguf_export.writing.remarks import FEW_TOKENS
from quantize.tensors import layer_of

__all__ = [
    "ImatrixFacts",
    "expert_rows",
    "imatrix_facts",
    "imatrix_in_words",
    "layer_rows",
    "starved_rows",
    "tensor_rows",
]

Rows = list[tuple[str, ...]]


@dataclass(frozen=True)
class ImatrixFacts:
    """The figures of an importance matrix.

    A file of the `legacy` form tells calls of llama-imatrix instead of tokens, and not how many experts there are:
    nobody can be called starved by it. Its `chunk_size` is 0, which means that it is not known.
    """

    path: str
    kind: Literal["imatrix"]
    legacy: bool
    datasets: tuple[str, ...]
    chunk_count: int
    chunk_size: int
    n_entries: int
    unseen: tuple[str, ...]
    """Tensors that no token reached; they are not among `tensors`."""
    zero: tuple[str, ...]
    """Tensors whose importances are all zero though tokens reached them."""
    starved: tuple[ThinExpert, ...]
    """Experts that fewer than 100 tokens reached."""
    layers: tuple[LayerStatistics, ...]
    tensors: tuple[TensorStatistics, ...]

    @property
    def is_zero(self) -> bool:
        """Whether there is nothing but zeros."""
        return len(self.zero) + len(self.unseen) == self.n_entries

    def as_dict(self) -> dict[str, Any]:
        """Everything, as JSON takes it, which has no NaN: None."""
        found: dict[str, Any] = _finite({**asdict(self), "is_zero": self.is_zero})
        return found


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def imatrix_facts(path: Path) -> ImatrixFacts:
    """Read an importance matrix, in either form, and describe it.

    Raises:
        ImatrixError: it cannot be read.
    """
    imatrix = load_imatrix(path)
    tensors = tensor_statistics(imatrix)
    seen = {one.name for one in tensors}
    return ImatrixFacts(
        path=imatrix.file,
        kind="imatrix",
        legacy=imatrix.legacy,
        datasets=tuple(imatrix.datasets),
        chunk_count=imatrix.chunk_count,
        chunk_size=imatrix.chunk_size,
        n_entries=len(imatrix.entries),
        unseen=tuple(name for name in imatrix.entries if name not in seen),
        zero=tuple(imatrix.flat()[0]),
        starved=tuple(imatrix.thin(fewer_than=FEW_TOKENS)),
        layers=tuple(layer_statistics(tensors)),
        tensors=tuple(tensors),
    )


def imatrix_in_words(facts: ImatrixFacts) -> list[tuple[str, str]]:
    """The facts that a person wants to see first: pairs of a label and a text."""
    size = f" of {facts.chunk_size:,} tokens" if facts.chunk_size else ""
    return [
        ("kind", f"importance matrix, {'legacy form' if facts.legacy else 'GGUF form'}"),
        ("datasets", ", ".join(facts.datasets) or "not named"),
        ("chunks", f"{facts.chunk_count:,}{size}"),
        ("tensors", f"{facts.n_entries:,}"),
        ("tokens", _tokens_in_words(facts)),
        ("starved experts", _starved_in_words(facts)),
        ("importances", _importances_in_words(facts)),
    ]


def _tokens_in_words(facts: ImatrixFacts) -> str:
    if facts.legacy:
        return "not known: the legacy form holds no counts of tokens"
    of_dense = [one.n_tokens for one in facts.tensors if not one.experts]
    of_experts = [expert.n_tokens for one in facts.tensors for expert in one.experts]
    parts = [f"{max(of_dense):,}"] if of_dense else []
    if of_experts:
        parts.append(f"an expert {min(of_experts):,} to {max(of_experts):,}")
    return "; ".join(parts) or "none"


def _starved_in_words(facts: ImatrixFacts) -> str:
    if facts.legacy:
        return "not known: the legacy form holds no counts of experts"
    if not facts.starved:
        return "none"
    experts = _starved_experts(facts)
    n_none = sum(n_tokens == 0 for n_tokens in experts.values())
    return f"{len(experts):,} that fewer than {FEW_TOKENS} tokens reached, {n_none:,} of them none"


def _importances_in_words(facts: ImatrixFacts) -> str:
    if facts.is_zero:
        return "all zero: this matrix weighs nothing"
    parts = [f"{len(facts.zero):,} tensors hold only zeros"] if facts.zero else []
    parts += [f"{len(facts.unseen):,} tensors saw no token"] if facts.unseen else []
    return ", ".join(parts) or "no tensor holds only zeros"


def _starved_experts(facts: ImatrixFacts) -> dict[tuple[int, str, int], int]:
    """Tokens by layer, or -1 and a name, and expert: the tensors of a layer have the same experts."""
    found: dict[tuple[int, str, int], int] = {}
    for one in facts.starved:
        bid = layer_of(one.name)
        place = (-1, one.name, one.xid) if bid is None else (bid, "", one.xid)
        found[place] = min(one.n_tokens, found.get(place, one.n_tokens))
    return found


def starved_rows(facts: ImatrixFacts) -> Rows:
    """Layer, expert and tokens of the starved experts, the most starved ones first."""
    listed = sorted(_starved_experts(facts).items(), key=lambda item: (item[1], item[0]))
    return [
        (f"layer {bid}" if bid >= 0 else name, str(xid), f"{n_tokens:,}")
        for (bid, name, xid), n_tokens in listed
    ]


def layer_rows(facts: ImatrixFacts) -> Rows:
    """Of each layer what llama-imatrix prints: the means of Σ(Act²), ZD and CosSim."""
    return [
        (str(one.bid), f"{one.total:.2f}", f"{_percent(one.zd):.4f}%", f"{one.cossim:.4f}")
        for one in facts.layers
    ]


def tensor_rows(facts: ImatrixFacts) -> Rows:
    """Of each tensor what llama-imatrix prints: layer, tensor, the figures, and CosSim."""
    return [(one.layer, one.tensor, *_figures(one.statistics), f"{one.cossim:.4f}") for one in facts.tensors]


def expert_rows(facts: ImatrixFacts) -> Rows:
    """Of each expert layer, tensor, number, tokens and the figures."""
    return [
        (
            *(one.layer, one.tensor, str(expert.xid), f"{expert.n_tokens:,}"),
            *(_figures(expert.statistics) if expert.statistics else ["-"] * 10),
        )
        for one in facts.tensors
        for expert in one.experts
    ]


def _figures(of: Statistics) -> Sequence[str]:
    """The figures as llama-imatrix prints them."""
    return [
        *(f"{of.total:.2f}", f"{of.least:.4f}", f"{of.most:.4f}", f"{of.mean:.2f}", f"{of.stddev:.2f}"),
        *(f"{_percent(of.active):.2f}%", str(of.n), f"{of.entropy:.4f}", f"{_percent(of.entropy_norm):.2f}%"),
        f"{_percent(of.zd):.2f}%",
    ]


def _percent(share: float) -> float:
    """A share in percent, a float32 as there: of 9.46875 the last digit that is printed depends on it."""
    return float(np.float32(100 * share))
