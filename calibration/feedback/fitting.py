"""The blocks of the matrices that share their inputs: candidates of several strengths, chosen by held-out tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from calibration.feedback.moments import Damped, Moments, Visit
from quantize.blocks.parts import part_format
from quantize.codec import decode, encode
from quantize.feedback.encoder import encode_with_feedback, side_by_side
from quantize.guide import Guide
from quantize.tensors import Array, QType, TensorSpec

__all__ = [
    "DAMPINGS",
    "Aim",
    "FeedbackSettings",
    "Fitted",
    "Fitter",
    "MatrixFit",
    "encoded_rows",
]

DAMPINGS = (0.03, 0.1, 0.3, 1.0)
"""From much text to little."""

MIN_HELD_OUT = 32  # tokens, of less nothing can be said
JUDGED = 2048  # held-out tokens that judge a matrix, at most
TRIED_ROWS = 128  # of a matrix, by which a damping is chosen
TRIAL_ROUNDS = 1  # of coordinate descent, which all candidates gain alike by
ROWS = 512  # that are worth a thread
PIECE_WEIGHTS = 1 << 26  # weights that are encoded together


@dataclass(frozen=True)
class FeedbackSettings:
    """How error feedback works.

    rounds: of coordinate descent over codes, scales and factors.
    dampings: the candidates among which the held-out tokens of each matrix choose: shares of the mean of the diagonal
        of its moments that are added to it.
    min_tokens: a matrix that fewer tokens reach is encoded plainly.
    prior: draws the moments of an expert to those that all tokens of its layer would give, with the weight of so many
        tokens.
    """

    rounds: int = 4
    dampings: tuple[float, ...] = DAMPINGS
    min_tokens: int = 64
    prior: float = 0.0


@dataclass(frozen=True, eq=False)
class Aim:
    """One matrix that is to be encoded: its weights float32 [n_row, n_per_row], and the type that it gets."""

    spec: TensorSpec
    xid: int
    weights: Tensor
    qtype: QType


@dataclass(frozen=True)
class MatrixFit:
    """How one matrix was encoded.

    `damping` is None where the plain encoding was kept, for the `reason`: "few tokens", or "held out" where it was
    better on held-out tokens. `ratio` is the squared error of some rows of the outputs on held-out tokens, relative to
    that of the plain encoding: before the held-out tokens were added to the moments. NaN where it was not measured.
    """

    name: str
    xid: int
    qtype: str
    n_token: int
    n_held_out: int
    damping: float | None
    ratio: float
    reason: str = ""


@dataclass(frozen=True, eq=False)
class Fitted:
    """The blocks uint8 [n_row, row bytes] of one matrix, the weights that they stand for, and how they were found."""

    blocks: Array
    values: Tensor
    fit: MatrixFit


Visits = Callable[[bool], Iterable[Visit]]
"""Gives the visits of the tokens that are fitted (False) or held out (True)."""


class Fitter:
    """Encodes matrices; keeps the threads that share their rows."""

    def __init__(self, settings: FeedbackSettings, device: str, workers: ThreadPoolExecutor) -> None:
        self.settings, self._device, self.workers = settings, device, workers

    def fit(
        self,
        aims: Sequence[Aim],
        visits: Visits,
        counts: tuple[int, int],
        importance: Callable[[Aim], Array | None],
        *,
        gap_of_inputs: bool,
    ) -> list[Fitted]:
        """Encode matrices that have the same inputs.

        Args:
            aims: the matrices.
            visits: is asked for the fitted tokens once and for the held-out ones twice.
            counts: tokens that are fitted and held out, each once.
            importance: gives the importance [n_per_row] of a matrix's plain encoding, when all visits are done.
            gap_of_inputs: whether gaps are those of the inputs; else those of the output of the one matrix.
        """
        first = aims[0].spec
        n_gap = first.n_per_row if gap_of_inputs else first.n_row
        moments = Moments(first.n_per_row, n_gap, self._device, of_inputs=gap_of_inputs)
        for visit in visits(False):
            moments.add(visit)
        held_out = _HeldOut(counts[1])
        for visit in visits(True):
            held_out.keep(visit)
        guides = {aim: Guide.of(importance(aim)) for aim in aims}
        if counts[0] < self.settings.min_tokens or counts[1] < MIN_HELD_OUT:
            return [self._plain(aim, guides[aim], _fit(aim, counts, "few tokens")) for aim in aims]
        trials = {aim: _Trial(self, aim, guides[aim], held_out, gap_of_inputs) for aim in aims}
        for damping in self.settings.dampings:
            damped = moments.damped(damping)
            consider = partial(_Trial.consider, damping=damping, damped=damped)
            with side_by_side():
                list(self.workers.map(consider, trials.values()))
        chosen = {trial.damping for trial in trials.values() if trial.damping is not None}
        if chosen:
            for visit in visits(True):
                moments.add(visit)
        results = {}
        for damping in chosen:
            damped = moments.damped(damping)
            for aim, trial in trials.items():
                if trial.damping == damping:
                    blocks = self._fed_back(aim, guides[aim], damped)
                    fit = _fit(aim, counts, damping=damping, ratio=trial.ratio)
                    results[aim] = Fitted(*self.decoded(aim, blocks), fit)
        return [
            results[aim]
            if aim in results
            else self._plain(aim, guides[aim], _fit(aim, counts, "held out", ratio=1.0))
            for aim in aims
        ]

    def encoded(
        self,
        aim: Aim,
        guide: Guide | None,
        damped: Damped,
        rows: Tensor,
        rounds: int,
        workers: ThreadPoolExecutor | None = None,
    ) -> Array:
        """The blocks of some rows of a matrix, aimed at their target.

        A type whose parts cannot be moved is encoded plainly, but aims at the target, too.
        """
        target = damped.target(aim.weights[rows], rows).cpu().numpy()
        if part_format(aim.qtype) is None:
            return encoded_rows(target, aim.qtype, guide, workers)
        return encode_with_feedback(target, aim.qtype, damped.known, rounds=rounds, workers=workers)

    def decoded(self, aim: Aim, blocks: Array) -> tuple[Array, Tensor]:
        """Blocks, and the weights that they stand for."""
        values = torch.from_numpy(decode(blocks, aim.qtype, aim.spec.n_per_row))
        return blocks, values.to(self._device)

    def _fed_back(self, aim: Aim, guide: Guide | None, damped: Damped) -> Array:
        """The blocks of all rows, as many at a time as some copies of fit into memory."""
        step = max(1, PIECE_WEIGHTS // aim.spec.n_per_row)
        firsts = range(0, len(aim.weights), step)
        pieces = (torch.arange(first, min(first + step, len(aim.weights))) for first in firsts)
        return np.concatenate(
            [self.encoded(aim, guide, damped, rows, self.settings.rounds, self.workers) for rows in pieces]
        )

    def _plain(self, aim: Aim, guide: Guide | None, fit: MatrixFit) -> Fitted:
        blocks = encoded_rows(aim.weights.cpu().numpy(), aim.qtype, guide, self.workers)
        return Fitted(*self.decoded(aim, blocks), fit)


class _HeldOut:
    """The visits that judge: at most about `JUDGED` of the held-out tokens, evenly spread."""

    def __init__(self, n_coming: int) -> None:
        self.n_token = 0
        self._visits: list[Visit] = []
        self._step = max(1, -(-n_coming // JUDGED))

    def keep(self, visit: Visit) -> None:
        """Keep some of the tokens of a visit."""
        first, step = -self.n_token % self._step, self._step
        weights = None if visit.weights is None else visit.weights[first::step].clone()
        self._visits.append(Visit(visit.y[first::step].clone(), visit.gap[first::step].clone(), weights))
        self.n_token += len(visit.y)

    def error(self, difference: Tensor, through: Tensor | None, rows: Tensor) -> float:
        """The squared error of some outputs with a matrix whose weights are lower by `difference` [n, n_per_row].

        Args:
            difference: of the rows.
            through: the rows of the original matrix, where gaps are those of inputs.
            rows: their places, where gaps are those of outputs.
        """
        total = 0.0
        for visit in self._visits:
            gap = visit.gap.float()
            lacks = gap[:, rows] if through is None else functional.linear(gap, through)
            squares = (lacks + functional.linear(visit.y.float(), difference)).square_().sum(1)
            if visit.weights is not None:
                squares *= visit.weights
            total += float(squares.sum(dtype=torch.float64))
        return total


class _Trial:
    """The candidates of one matrix, held against its plain encoding on held-out tokens, by some of its rows."""

    def __init__(
        self, fitter: Fitter, aim: Aim, guide: Guide | None, held_out: _HeldOut, gap_of_inputs: bool
    ) -> None:
        self._fitter, self._aim, self._guide, self._held_out = fitter, aim, guide, held_out
        n_row = len(aim.weights)
        self._rows = torch.arange(0, n_row, max(1, n_row // TRIED_ROWS))
        self._weights = aim.weights[self._rows]
        self._through = self._weights if gap_of_inputs else None
        plain = encoded_rows(self._weights.cpu().numpy(), aim.qtype, guide)
        self._plain_error = self._least = self._error(plain)
        self.damping: float | None = None

    @property
    def ratio(self) -> float:
        """The least error relative to that of the plain encoding."""
        return self._least / self._plain_error if self._plain_error else float("nan")

    def consider(self, damping: float, damped: Damped) -> None:
        """Choose a damping if its error is the least so far."""
        error = self._error(self._fitter.encoded(self._aim, self._guide, damped, self._rows, TRIAL_ROUNDS))
        if error < self._least:
            self.damping, self._least = damping, error

    def _error(self, blocks: Array) -> float:
        _, values = self._fitter.decoded(self._aim, blocks)
        return self._held_out.error(self._weights - values, self._through, self._rows)


def encoded_rows(
    weights: Array, qtype: QType, guide: Guide | None, workers: ThreadPoolExecutor | None = None
) -> Array:
    """The plain encoding, a thread for some rows each: no row depends on another."""
    pieces = (weights[first : first + ROWS] for first in range(0, len(weights), ROWS))
    encode_rows = partial(encode, qtype=qtype, guide=guide)
    return np.concatenate(list((map if workers is None else workers.map)(encode_rows, pieces)))


def _fit(
    aim: Aim,
    counts: tuple[int, int],
    reason: str = "",
    *,
    damping: float | None = None,
    ratio: float = float("nan"),
) -> MatrixFit:
    return MatrixFit(aim.spec.name, aim.xid, aim.qtype.name, *counts, damping, ratio, reason)
