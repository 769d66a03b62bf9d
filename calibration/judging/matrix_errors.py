"""How much a type hurts: error measures of weights and outputs, and the table of them, matrix by matrix.

All errors are relative, so that experts and types can be compared; amplitudes (`relative`, `weighted`) and the energy
`nmse` are of one kind: nmse is about weighted squared where the columns of the activations are not correlated.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from statistics import fmean, median

import numpy as np

from quantize.tensors import Array

__all__ = ["ErrorReport", "Errors", "MatrixErrors", "OutputSums", "Totals", "WeightSums", "totals", "worst"]


@dataclass(frozen=True)
class Errors:
    """What one type does to one matrix W, which becomes V; None where it was not or could not be measured.

    rms: root of the mean of (W - V)², in units of the weights.
    relative: the same, divided by the root of the mean of W².
    weighted: as `relative`, each column weighted with its importance (the mean square of its input).
    nmse: sum of (X Wᵀ - X Vᵀ)² / sum of (X Wᵀ)² over the rows X of held-out activations.
    cosine: the mean over those rows of the cosine between the output x Wᵀ and x Vᵀ.
    """

    rms: float
    relative: float
    weighted: float | None = None
    nmse: float | None = None
    cosine: float | None = None


class WeightSums:
    """Squared errors and squared weights of a matrix by column, summed in float64, some rows at a time."""

    def __init__(self, n_per_row: int) -> None:
        self._error = np.zeros(n_per_row)
        self._energy = np.zeros(n_per_row)
        self._n_row = 0

    def add(self, weights: Array, difference: Array) -> None:
        """Take some rows [n_row, n_per_row] of the weights, and of weights minus decoded weights; float32."""
        self._energy += np.square(weights).sum(axis=0, dtype=np.float64)
        self._error += np.square(difference).sum(axis=0, dtype=np.float64)
        self._n_row += len(weights)

    def merge(self, other: WeightSums) -> None:
        """Take the sums of further rows."""
        self._energy += other._energy
        self._error += other._error
        self._n_row += other._n_row

    def errors(self, importance: Array | None = None) -> Errors:
        """`rms`, `relative` and, with importances [n_per_row], `weighted`."""
        error, energy = float(self._error.sum()), float(self._energy.sum())
        weighted = None
        if importance is not None:
            wide = importance.astype(np.float64)
            weighted = _root(_ratio(float(wide @ self._error), float(wide @ self._energy)))
        rms = math.sqrt(error / max(1, self._n_row * len(self._error)))
        return Errors(rms, _root(_ratio(error, energy)) or 0.0, weighted)


class OutputSums:
    """Products of outputs and their errors, row by row of the activations, summed in float64 over output columns."""

    def __init__(self, n_judged: int) -> None:
        self._output = np.zeros(n_judged)  # y·y for each row
        self._error = np.zeros(n_judged)  # e·e
        self._both = np.zeros(n_judged)  # y·e

    def add(self, output: Array, error: Array) -> None:
        """Take some output columns: y = x Wᵀ and e = x (W - V)ᵀ, [n_judged, n] each, float32."""
        self._output += _row_sums(output, output)
        self._error += _row_sums(error, error)
        self._both += _row_sums(output, error)

    def merge(self, other: OutputSums) -> None:
        """Take the sums of further output columns of the same rows."""
        self._output += other._output
        self._error += other._error
        self._both += other._both

    def nmse(self) -> float | None:
        """Normalised mean squared error, None where the output is nothing but zero."""
        return _ratio(float(self._error.sum()), float(self._output.sum()))

    def cosine(self) -> float | None:
        """Mean cosine of y and y - e over the rows whose output is not zero; None where there are none."""
        decoded = np.maximum(self._output - 2 * self._both + self._error, 0)
        lengths = np.sqrt(self._output * decoded)
        live = lengths > 0
        if not live.any():
            return None
        return float(np.clip((self._output - self._both)[live] / lengths[live], -1, 1).mean())


def _row_sums(a: Array, b: Array) -> Array:
    """Sum of a * b over each row [t, n] -> float64 [t]."""
    sums: Array = np.multiply(a, b).sum(axis=1, dtype=np.float64)
    return sums


def _ratio(part: float, whole: float) -> float | None:
    if whole > 0:
        return part / whole
    return 0.0 if part == 0 else None


def _root(square: float | None) -> float | None:
    return None if square is None else math.sqrt(square)


@dataclass(frozen=True)
class MatrixErrors:
    """One line of the table: what the type `qtype` does to one matrix.

    `plain` is the same type fitted without importances, for comparison; None where that was not asked for, and where
    it is the same (no importances are known, or the type, such as Q8_0, has no use for them).
    """

    name: str  # of the tensor, as GGUF calls it
    xid: int | None  # None where there are no experts
    qtype: str
    n_elements: int
    n_bytes: int  # as `qtype`
    n_tokens: int  # that reached the matrix in the text that importances were fitted on
    n_effective: (
        float  # effective number of those tokens (Kish): (Σ r)² / Σ r², r = |x|² of each token's input
    )
    n_held_out: int  # tokens that reached it in the held-out text
    n_judged: int  # of those, how many the output error was measured on
    errors: Errors
    plain: Errors | None = None
    fallback: str | None = None  # the type taken instead, where rows do not divide into blocks of `qtype`

    @property
    def bid(self) -> int | None:
        """The layer, None where the tensor belongs to none."""
        found = re.match(r"blk\.(\d+)\.", self.name)
        return int(found[1]) if found else None

    @property
    def projection(self) -> str:
        """The tensor's name without layer and suffixes: attn_q, ffn_down, ..."""
        return re.sub(r"^blk\.\d+\.|\.weight$", "", self.name).removesuffix("_exps")

    @property
    def starved(self) -> bool:
        """An expert that no token of the fitted text reached: it was quantized without knowing its inputs."""
        return self.xid is not None and self.n_tokens == 0

    @property
    def place(self) -> str:
        """Where it is, as a person would say it."""
        parts = [] if self.bid is None else [f"layer {self.bid}"]
        parts += [] if self.xid is None else [f"expert {self.xid}"]
        return ", ".join([*parts, self.projection])

    @property
    def helped(self) -> bool | None:
        """Whether importances lowered the output error; None where one of the two is not known."""
        if self.plain is None or self.plain.nmse is None or self.errors.nmse is None:
            return None
        return self.errors.nmse < self.plain.nmse


@dataclass(frozen=True)
class LayerRouting:
    """What the router of one layer did with the fitted text."""

    entropy: float  # mean over the tokens of the entropy of its probabilities, in nats: at most ln(n_expert)
    pairs: tuple[
        tuple[int, ...], ...
    ]  # [n_expert][n_expert] tokens that went to both; the diagonal is the load


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
    def starved(self) -> tuple[tuple[int, int], ...]:
        """(layer, expert) that no token of the fitted text reached."""
        return tuple(sorted({(row.bid or 0, row.xid or 0) for row in self.rows if row.starved}))

    @property
    def unjudged(self) -> tuple[tuple[int, int], ...]:
        """(layer, expert) that no held-out token reached, so that no output error is known."""
        found = {(row.bid or 0, row.xid) for row in self.rows if row.xid is not None and not row.n_held_out}
        return tuple(sorted(found))

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
    """Add some lines of the table up."""
    judged = [row for row in rows if row.errors.nmse is not None]
    nmse = [row.errors.nmse for row in judged if row.errors.nmse is not None]
    cosines = [row.errors.cosine for row in judged if row.errors.cosine is not None]
    compared = [row for row in judged if row.helped is not None]
    plain = [row.plain.nmse for row in compared if row.plain is not None and row.plain.nmse is not None]
    ratios = [
        row.errors.nmse / before
        for row, before in zip(compared, plain, strict=True)
        if before and row.errors.nmse is not None
    ]
    error = sum(row.n_elements * row.errors.rms**2 for row in rows)
    energy = sum(
        row.n_elements * (row.errors.rms / row.errors.relative) ** 2 for row in rows if row.errors.relative
    )
    return Totals(
        label=label,
        n_matrices=len(rows),
        n_judged=len(judged),
        bpw=8 * sum(row.n_bytes for row in rows) / max(1, sum(row.n_elements for row in rows)),
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
