"""The blocks of the matrices that share their inputs: candidates of several strengths, chosen by held-out tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

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

__all__ = [
    "STRENGTHS",
    "Aim",
    "FeedbackSettings",
    "Fitted",
    "Fitter",
    "MatrixFit",
    "encoded_rows",
    "pieces",
]

STRENGTHS = (Strength(0.1, 0.03), Strength(0.3, 0.1), Strength(1.0, 0.3))
"""From much text to little; the strengths that were best on two models."""

MIN_HELD_OUT = 32  # tokens, of less nothing can be said
JUDGED = 2048  # held-out tokens that judge a matrix, at most
ROWS = 512  # that are worth a thread
PIECE_WEIGHTS = 1 << 26  # weights that are encoded together


@dataclass(frozen=True)
class FeedbackSettings:
    """How error feedback works.

    rounds: of coordinate descent over codes, scales and factors.
    trial_rounds: the same for candidates, of which all but one are dropped.
    strengths: the candidates among which the held-out tokens of each matrix choose.
    min_tokens: a matrix that fewer tokens reach is encoded plainly.
    prior: draws the moments of an expert to those that all tokens of its layer would give, with the weight of so many
        tokens.
    """

    rounds: int = 4
    trial_rounds: int = 1
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

    def is_part_of(self, other: Aim) -> bool:
        """Whether it holds some rows of the same matrix."""
        return (self.spec.name, self.xid) == (other.spec.name, other.xid)


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
        self.settings, self._device, self._workers = settings, device, workers

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
        parts = [piece for aim in aims for piece in (pieces(aim) if gap_of_inputs else [aim])]
        guides = {piece: Guide.of(importance(piece)) for piece in parts}
        plain = [self._plain(piece, guide) for piece, guide in guides.items()]
        trials = [
            _Trial(piece, one, held_out, gap_of_inputs) for piece, one in zip(parts, plain, strict=True)
        ]
        enough = counts[0] >= self.settings.min_tokens and counts[1] >= MIN_HELD_OUT
        if enough:
            self._try(trials, guides, moments)
            if any(trial.strength is not None for trial in trials):
                for visit in visits(True):
                    moments.add(visit)
                self._repeat(trials, guides, moments)
        return [_joined(aim, [t for t in trials if t.aim.is_part_of(aim)], counts, enough) for aim in aims]

    def _try(self, trials: Sequence[_Trial], guides: Mapping[Aim, Guide | None], moments: Moments) -> None:
        """Let each matrix choose among all strengths."""
        for strength in self.settings.strengths:
            candidates = self._candidates(guides, moments, strength, self.settings.trial_rounds)
            for trial, blocks in zip(trials, candidates, strict=True):
                trial.consider(strength, self._decoded(trial.aim, blocks))

    def _repeat(self, trials: Sequence[_Trial], guides: Mapping[Aim, Guide | None], moments: Moments) -> None:
        """Encode each matrix again at the strength that it chose, by moments that have grown."""
        for strength in self.settings.strengths:
            wanted = {trial.aim: trial for trial in trials if trial.strength == strength}
            if wanted:
                chosen = {aim: guides[aim] for aim in wanted}
                anew = self._candidates(chosen, moments, strength, self.settings.rounds)
                for trial, blocks in zip(wanted.values(), anew, strict=True):
                    trial.best = self._decoded(trial.aim, blocks)

    def _plain(self, aim: Aim, guide: Guide | None) -> tuple[Array, Tensor]:
        return self._decoded(aim, encoded_rows(aim.weights.cpu().numpy(), aim.qtype, guide, self._workers))

    def _candidates(
        self, guides: Mapping[Aim, Guide | None], moments: Moments, strength: Strength, rounds: int
    ) -> Iterator[Array]:
        """The blocks of each matrix at a strength."""
        known: FeedbackInput | None = None
        targets = moments.targets([aim.weights for aim in guides], strength.pull)
        for aim, target in zip(guides, targets, strict=True):
            wanted = np.ascontiguousarray(target.cpu().numpy())
            if part_format(aim.qtype) is None:
                yield encoded_rows(wanted, aim.qtype, guides[aim], self._workers)
                continue
            known = known or moments.known(strength.damping)
            yield encode_with_feedback(wanted, aim.qtype, known, rounds=rounds, workers=self._workers)

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

    @property
    def ratio(self) -> float:
        """The least error relative to that of the plain encoding."""
        return self._least / self._plain_error if self._plain_error else float("nan")

    def _error(self, candidate: tuple[Array, Tensor]) -> float:
        return self._held_out.error(self.aim.weights - candidate[1], self._through)


def encoded_rows(weights: Array, qtype: QType, guide: Guide | None, workers: ThreadPoolExecutor) -> Array:
    """The plain encoding, a thread for some rows each: no row depends on another."""
    firsts = range(0, len(weights), ROWS)
    return np.concatenate(
        list(workers.map(lambda first: encode(weights[first : first + ROWS], qtype, guide), firsts))
    )


def pieces(aim: Aim) -> list[Aim]:
    """A matrix in groups of rows that several copies of fit into memory."""
    step = max(1, PIECE_WEIGHTS // aim.spec.n_per_row)
    firsts = range(0, len(aim.weights), step)
    return [replace(aim, weights=aim.weights[first : first + step]) for first in firsts]


def _joined(aim: Aim, trials: Sequence[_Trial], counts: tuple[int, int], is_enough: bool) -> Fitted:
    """What became of a matrix, from its pieces."""
    moved = [trial for trial in trials if trial.strength is not None]
    ratio = float(np.mean([trial.ratio for trial in trials])) if is_enough else float("nan")
    reason = "" if moved else "held out" if is_enough else "few tokens"
    strength = moved[0].strength if moved else None
    fit = MatrixFit(aim.spec.name, aim.xid, aim.qtype.name, *counts, strength, ratio, reason)
    blocks, values = zip(*(trial.best for trial in trials), strict=True)
    return Fitted(np.concatenate(blocks), torch.cat(values), fit)
