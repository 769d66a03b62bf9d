"""The error report: a table of error measures by matrix and type, its totals and its worst lines.

How the measures are summed is `error_sums`; drawing and writing the table is for others.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from statistics import fmean, median

from quantize.tensors import bits_per_weight, layer_of

__all__ = ["ErrorReport", "Errors", "LayerRouting", "MatrixErrors", "Totals", "totals", "worst"]


@dataclass(frozen=True)
class Errors:
    """The errors of one matrix W that a type turns into V; None where a measure was not or could not be taken.

    rms: root of the mean of (W - V)², in units of the weights.
    relative: the same, divided by the root of the mean of W².
    weighted: as `relative`, each column weighted with its importance (the mean square of its input).
    nmse: sum of (X Wᵀ - X Vᵀ)² / sum of (X Wᵀ)² over the rows X of held-out activations.
    cosine: the mean over those rows of the cosine between the output x Wᵀ and x Vᵀ.

    All but `rms` are relative, so that experts and types can be compared. `relative` and `weighted` are amplitudes,
    `nmse` is an energy: about `weighted` squared where the columns of the activations are not correlated.
    """

    rms: float
    relative: float
    weighted: float | None = None
    nmse: float | None = None
    cosine: float | None = None


@dataclass(frozen=True)
class MatrixErrors:
    """One line of the table: the errors of one matrix as `qtype`, a tensor type or a file type.

    `plain` is the same type fitted without importances, for comparison; None where that was not asked for, and where
    it is the same (no importances are known, or the type, such as Q8_0, has no use for them).
    """

    name: str  # of the tensor, as GGUF calls it
    xid: int | None  # None where there are no experts
    qtype: str
    n_elements: int
    n_bytes: int  # as `qtype`
    n_tokens: int  # that reached the matrix in the text that importances were fitted on
    n_effective: float  # Kish's effective number of those tokens: (Σ r)² / Σ r², r = |x|² of a token's input
    n_held_out: int  # tokens that reached it in the held-out text
    n_judged: int  # of those, how many the output error was measured on
    errors: Errors
    plain: Errors | None = None
    fallback: str | None = None  # the type taken where rows do not divide into blocks of that meant
    tensor_type: str = ""  # the type that the matrix has in the file type `qtype`, or `qtype` itself

    @property
    def bid(self) -> int | None:
        """The layer, None where the tensor belongs to none."""
        return layer_of(self.name)

    @property
    def projection(self) -> str:
        """The tensor's name without layer and suffixes: attn_q, ffn_down, ..."""
        name = self.name.removeprefix(f"blk.{self.bid}.").removesuffix(".weight")
        return name.removesuffix("_exps")

    @property
    def unseen(self) -> bool:
        """An expert that no token of the fitted text reached: it was quantized without knowing its inputs."""
        return self.xid is not None and self.n_tokens == 0

    @property
    def place(self) -> str:
        """The matrix as a person would say it: layer, expert, projection."""
        layer = [] if self.bid is None else [f"layer {self.bid}"]
        expert = [] if self.xid is None else [f"expert {self.xid}"]
        return ", ".join([*layer, *expert, self.projection])

    @property
    def helped(self) -> bool | None:
        """Whether importances lowered the output error; None where one of the two is not known."""
        if self.plain is None or self.plain.nmse is None or self.errors.nmse is None:
            return None
        return self.errors.nmse < self.plain.nmse


@dataclass(frozen=True)
class LayerRouting:
    """How the router of one layer distributed the fitted text."""

    entropy: float  # mean over the tokens of the entropy of its probabilities, in nats: at most ln(n_expert)
    pairs: tuple[
        tuple[int, ...], ...
    ]  # [n_expert][n_expert] tokens that went to both; the diagonal: the load


@dataclass(frozen=True)
class ErrorReport:
    """The errors of every matrix and type of a model, and how they were measured."""

    model: str
    n_layer: int
    n_expert: int
    n_expert_used: int
    qtypes: tuple[str, ...]
    rows: tuple[MatrixErrors, ...]
    n_fit: int  # tokens that the importances were fitted on
    n_held_out: int  # tokens that the output error was judged on
    facts: tuple[tuple[str, str], ...] = field(default=())  # how it was measured, for the reader
    routing: tuple[LayerRouting, ...] = ()  # by layer; empty where there are no experts

    @property
    def unseen(self) -> tuple[tuple[int, int], ...]:
        """(layer, expert) that no token of the fitted text reached."""
        return tuple(sorted({(row.bid or 0, row.xid or 0) for row in self.rows if row.unseen}))

    @property
    def unjudged(self) -> tuple[tuple[int, int], ...]:
        """(layer, expert) that no held-out token reached, so that no output error is known."""
        places = {(row.bid or 0, row.xid) for row in self.rows if row.xid is not None and not row.n_held_out}
        return tuple(sorted(places))

    def of(self, qtype: str) -> tuple[MatrixErrors, ...]:
        """The lines of one type."""
        return tuple(row for row in self.rows if row.qtype == qtype)


@dataclass(frozen=True)
class Totals:
    """The matrices of one type together; the output errors are over the matrices that were judged."""

    label: str
    n_matrices: int
    n_judged: int
    bpw: float
    relative: float  # over all weights: root of Σ error² / Σ weight²
    median_nmse: float | None
    mean_nmse: float | None
    worst: MatrixErrors | None
    mean_cosine: float | None
    median_plain_nmse: float | None
    n_compared: int  # matrices whose output error is known with and without importances
    n_helped: int  # those of them whose error importances lowered
    median_ratio: float | None  # of the output error with importances to that without


def totals(label: str, rows: Sequence[MatrixErrors]) -> Totals:
    """Sum up some lines of the table."""
    judged = [row for row in rows if row.errors.nmse is not None]
    nmse = [row.errors.nmse for row in judged if row.errors.nmse is not None]
    cosines = [row.errors.cosine for row in judged if row.errors.cosine is not None]
    compared = [row for row in judged if row.helped is not None]
    plain = [row.plain.nmse for row in compared if row.plain is not None and row.plain.nmse is not None]
    ratios = [
        row.errors.nmse / plain_nmse
        for row, plain_nmse in zip(compared, plain, strict=True)
        if plain_nmse and row.errors.nmse is not None
    ]
    error = sum(row.n_elements * row.errors.rms**2 for row in rows)
    energy = sum(
        row.n_elements * (row.errors.rms / row.errors.relative) ** 2 for row in rows if row.errors.relative
    )
    return Totals(
        label=label,
        n_matrices=len(rows),
        n_judged=len(judged),
        bpw=bits_per_weight(sum(row.n_bytes for row in rows), sum(row.n_elements for row in rows)),
        relative=math.sqrt(error / energy) if energy else 0.0,
        median_nmse=median(nmse) if nmse else None,
        mean_nmse=fmean(nmse) if nmse else None,
        worst=next(iter(worst(rows, 1)), None),
        mean_cosine=fmean(cosines) if cosines else None,
        median_plain_nmse=median(plain) if plain else None,
        n_compared=len(compared),
        n_helped=sum(row.helped is True for row in compared),
        median_ratio=median(ratios) if ratios else None,
    )


def worst(rows: Iterable[MatrixErrors], n: int = 10) -> list[MatrixErrors]:
    """The `n` lines with the largest output error, the largest first; lines without one are left out."""
    judged = [row for row in rows if row.errors.nmse is not None]
    return sorted(judged, key=lambda row: (-(row.errors.nmse or 0.0), row.name, row.xid or 0))[:n]
