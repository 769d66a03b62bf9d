"""What the inputs of one matrix have in common, and what they lack against those of the original model."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from quantize.feedback.encoder import FeedbackInput

__all__ = ["Damped", "Moments", "Visit"]

SMALL = 128  # columns of a triangular matrix that are solved for at once


@dataclass(frozen=True, eq=False)
class Visit:
    """Some tokens at a matrix: its inputs y in the quantized stream, and what these lack.

    `y` [t, n_per_row]; `gap` is the original's input less y, [t, n_per_row], or what the output lacks, [t, n_row];
    `weights` float32 [t], how much each token counts, or None where all count alike.
    """

    y: Tensor
    gap: Tensor
    weights: Tensor | None = None


class Moments:
    """Sums over visits: H = Σ w y yᵀ [n, n], and Σ w gap yᵀ; float32 on the device of the visits."""

    def __init__(self, n_per_row: int, n_gap: int, device: str, *, of_inputs: bool) -> None:
        """Begin with no visit; a gap is [n_gap] long, and `of_inputs` or of outputs."""
        self._of_inputs = of_inputs
        self._squares = torch.zeros(n_per_row, n_per_row, device=device)
        self._gaps = torch.zeros(n_gap, n_per_row, device=device)

    def add(self, visit: Visit) -> None:
        """Add the tokens of a visit."""
        y, gap = visit.y.float(), visit.gap.float()
        weighted = y if visit.weights is None else y * visit.weights[:, None]
        self._squares.addmm_(weighted.T, y)
        self._gaps.addmm_(gap.T, weighted)

    def damped(self, damping: float) -> Damped:
        """The moments with a share of the mean of their diagonal added to it: how little they are trusted."""
        squares = self._squares.double()
        squares.diagonal().add_(
            max(damping * float(squares.diagonal().mean()), torch.finfo(torch.float32).tiny)
        )
        # H = R Rᵀ with R upper triangular is the Cholesky factor from the last column to the first; its inverse U is
        # upper triangular, too, and UᵀU is the inverse of H.
        upper = torch.linalg.cholesky(squares.flip(0, 1)).flip(0, 1)
        factor = _inverse(upper).float()
        diagonal = self._squares.diagonal()
        mean = diagonal.mean()
        importance = diagonal / mean if mean > 0 else torch.ones_like(diagonal)
        known = FeedbackInput(squares.float().cpu().numpy(), factor.cpu().numpy(), importance.cpu().numpy())
        return Damped(known, factor, self._gaps, self._of_inputs)


def _inverse(upper: Tensor) -> Tensor:
    """The inverse of an upper triangular matrix, by quarters: a third of the work of solving for all columns."""
    n = len(upper)
    if n <= SMALL:
        eye = torch.eye(n, dtype=upper.dtype, device=upper.device)
        solved: Tensor = torch.linalg.solve_triangular(upper, eye, upper=True)
        return solved
    half = n // 2
    result = torch.zeros_like(upper)
    result[:half, :half] = first = _inverse(upper[:half, :half])
    result[half:, half:] = last = _inverse(upper[half:, half:])
    result[:half, half:] = first @ upper[:half, half:] @ last.neg()
    return result


@dataclass(frozen=True, eq=False)
class Damped:
    """Moments at one damping: what the encoder takes of them, and the targets that follow from them."""

    known: FeedbackInput
    factor: Tensor
    gaps: Tensor
    of_inputs: bool

    def target(self, weights: Tensor, rows: Tensor) -> Tensor:
        """For rows W [n, n_per_row] of a matrix, the W* that best maps y to what the original had.

        W* = W + C H⁻¹ with C = Σ w (what W's output lacks) yᵀ; damping holds W* near W.

        Args:
            weights: float32 [n, n_per_row].
            rows: their places int64 [n] in the matrix, by which gaps of outputs are found.
        """
        lacks = weights @ self.gaps if self.of_inputs else self.gaps[rows.to(self.gaps.device)]
        return weights + (lacks @ self.factor.T) @ self.factor
