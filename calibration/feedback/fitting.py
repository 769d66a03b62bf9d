"""The blocks of the matrices that share their inputs: candidates of several strengths, chosen by held-out tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from calibration.feedback.moments import Moments, Strength, Visit
from quantize.blocks.parts import part_format
from quantize.codec import decode, encode
from quantize.feedback.encoder import FeedbackInput, encode_with_feedback
from quantize.guide import Guide
from quantize.tensors import Array, QType, TensorSpec

__all__ = ["STRENGTHS", "Aim", "FeedbackSettings", "Fitted", "Fitter", "MatrixFit"]

STRENGTHS = (Strength(0.1, 0.03), Strength(0.3, 0.1), Strength(1.0, 0.3))
"""From much text to little; the strengths that were best on two models."""

MIN_HELD_OUT = 32  # tokens, of less nothing can be said
JUDGED = 2048  # held-out tokens that judge a matrix, at most
ROWS = 512  # that are worth a thread


@dataclass(frozen=True)
class FeedbackSettings:
    """How error feedback works.

    rounds: of coordinate descent over codes, scales and factors.
    strengths: the candidates among which the held-out tokens of each matrix choose.
    min_tokens: a matrix that fewer tokens reach is encoded plainly.
    prior: draws the moments of an expert to those that all tokens of its layer would give, with the weight of so many
        tokens.
    """

    rounds: int = 3
    strengths: tuple[Strength, ...] = STRENGTHS
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

    `strength` is None where the plain encoding was kept, for the `reason`: "few tokens", or "held out" where it was
    better on held-out tokens. `ratio` is the squared error of the outputs on held-out tokens, relative to that of the
    plain encoding: before the held-out tokens were added to the moments. NaN where it was not measured.
    """

    name: str
    xid: int
    qtype: str
    n_token: int
    n_held_out: int
    strength: Strength | None
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
        self._settings, self._device, self._workers = settings, device, workers

    def fit(
        self,
        aims: Sequence[Aim],
        visits: Visits,
        n_held_out: int,
        importance: Callable[[Aim], Array | None],
        *,
        gap_of_inputs: bool,
    ) -> list[Fitted]:
        """Encode matrices that have the same inputs.

        Args:
            aims: the matrices.
            visits: is asked for the fitted tokens once and for the held-out ones twice.
            n_held_out: the number of these.
            importance: gives the importance [n_per_row] of a matrix's plain encoding, when all visits are done.
            gap_of_inputs: whether gaps are those of the inputs; else those of the output of the one matrix.
        """
        first = aims[0].spec
        n_gap = first.n_per_row if gap_of_inputs else first.n_row
        moments = Moments(first.n_per_row, n_gap, self._device, of_inputs=gap_of_inputs)
        for visit in visits(False):
            moments.add(visit)
        held_out = _HeldOut(n_held_out)
        for visit in visits(True):
            held_out.keep(visit)
        guides = {aim: Guide.of(importance(aim)) for aim in aims}
        plain = [self._encoded(aim.weights.cpu().numpy(), aim.qtype, guides[aim]) for aim in aims]
        counts = (moments.n_token, held_out.n_token)
        if moments.n_token < self._settings.min_tokens or held_out.n_token < MIN_HELD_OUT:
            return [
                _kept(aim, *self._decoded(aim, blocks), counts, "few tokens")
                for aim, blocks in zip(aims, plain, strict=True)
            ]
        trials = [
            _Trial(aim, self._decoded(aim, blocks), held_out, gap_of_inputs)
            for aim, blocks in zip(aims, plain, strict=True)
        ]
        for strength in self._settings.strengths:
            for trial, blocks in zip(trials, self._candidates(guides, moments, strength), strict=True):
                trial.consider(strength, self._decoded(trial.aim, blocks))
        chosen = {trial.strength for trial in trials if trial.strength is not None}
        if chosen:
            for visit in visits(True):
                moments.add(visit)
        for strength in sorted(chosen, key=str):
            wanted = [trial for trial in trials if trial.strength == strength]
            anew = self._candidates({trial.aim: guides[trial.aim] for trial in wanted}, moments, strength)
            for trial, blocks in zip(wanted, anew, strict=True):
                trial.best = self._decoded(trial.aim, blocks)
        return [trial.fitted(counts) for trial in trials]

    def _candidates(
        self, guides: Mapping[Aim, Guide | None], moments: Moments, strength: Strength
    ) -> Iterator[Array]:
        """The blocks of each matrix at a strength."""
        known: FeedbackInput | None = None
        targets = moments.targets([aim.weights for aim in guides], strength.pull)
        for aim, target in zip(guides, targets, strict=True):
            wanted = np.ascontiguousarray(target.cpu().numpy())
            if part_format(aim.qtype) is None:
                yield self._encoded(wanted, aim.qtype, guides[aim])
                continue
            known = known or moments.known(strength.damping)
            yield encode_with_feedback(
                wanted, aim.qtype, known, rounds=self._settings.rounds, workers=self._workers
            )

    def _encoded(self, weights: Array, qtype: QType, guide: Guide | None) -> Array:
        """The plain encoding, a thread for some rows each: no row depends on another."""
        firsts = range(0, len(weights), ROWS)
        return np.concatenate(
            list(self._workers.map(lambda first: encode(weights[first : first + ROWS], qtype, guide), firsts))
        )

    def _decoded(self, aim: Aim, blocks: Array) -> tuple[Array, Tensor]:
        values = torch.from_numpy(decode(blocks, aim.qtype, aim.spec.n_per_row))
        return blocks, values.to(self._device)


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

    def error(self, difference: Tensor, through: Tensor | None) -> float:
        """The squared error of the outputs with a matrix whose weights are lower by `difference` [n_row, n]."""
        total = 0.0
        for visit in self._visits:
            y = visit.y.float()
            gap = visit.gap.float() if through is None else functional.linear(visit.gap.float(), through)
            squares = (gap + functional.linear(y, difference)).square_().sum(1)
            if visit.weights is not None:
                squares *= visit.weights
            total += float(squares.sum(dtype=torch.float64))
        return total


class _Trial:
    """The candidates of one matrix, of which the best on held-out tokens is kept."""

    def __init__(
        self, aim: Aim, plain: tuple[Array, Tensor], held_out: _HeldOut, gap_of_inputs: bool
    ) -> None:
        self.aim, self.best = aim, plain
        self.strength: Strength | None = None
        self._held_out, self._through = held_out, aim.weights if gap_of_inputs else None
        self._plain_error = self._least = self._error(plain)

    def consider(self, strength: Strength, candidate: tuple[Array, Tensor]) -> None:
        error = self._error(candidate)
        if error < self._least:
            self.strength, self.best, self._least = strength, candidate, error

    def fitted(self, counts: tuple[int, int]) -> Fitted:
        if self.strength is None:
            return _kept(self.aim, *self.best, counts, "held out")
        aim = self.aim
        ratio = self._least / self._plain_error if self._plain_error else float("nan")
        fit = MatrixFit(aim.spec.name, aim.xid, aim.qtype.name, *counts, self.strength, ratio)
        return Fitted(*self.best, fit)

    def _error(self, candidate: tuple[Array, Tensor]) -> float:
        return self._held_out.error(self.aim.weights - candidate[1], self._through)


def _kept(aim: Aim, blocks: Array, values: Tensor, counts: tuple[int, int], reason: str) -> Fitted:
    ratio = 1.0 if reason == "held out" else float("nan")
    fit = MatrixFit(aim.spec.name, aim.xid, aim.qtype.name, *counts, None, ratio, reason)
    return Fitted(blocks, values, fit)
