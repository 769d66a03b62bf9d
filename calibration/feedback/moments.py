"""What the inputs of one matrix have in common, and what they lack against those of the original model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from quantize.feedback.encoder import FeedbackInput

__all__ = ["Moments", "Strength", "Visit"]


@dataclass(frozen=True)
class Strength:
    """How far the moments are trusted; both are shares of the mean of their diagonal, added to it.

    `pull` holds the target near the original weights, `damping` holds the error feedback back.
    """

    pull: float
    damping: float

    def __str__(self) -> str:
        return f"{self.pull:g}/{self.damping:g}"


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

    def known(self, damping: float) -> FeedbackInput:
        """The moments as the encoder takes them: damped, with their factor."""
        damped = self._damped(damping)
        # H = R Rᵀ with R upper triangular is the Cholesky factor from the last column to the first; its inverse U is
        # upper triangular, too, and UᵀU is the inverse of H.
        upper = torch.linalg.cholesky(damped.flip(0, 1)).flip(0, 1)
        eye = torch.eye(len(upper), dtype=upper.dtype, device=upper.device)
        factor = torch.linalg.solve_triangular(upper, eye, upper=True)
        diagonal = self._squares.diagonal()
        return FeedbackInput(
            damped.float().cpu().numpy(),
            factor.float().cpu().numpy(),
            (diagonal / diagonal.mean()).cpu().numpy(),
        )

    def targets(self, weights: list[Tensor], pull: float) -> Iterator[Tensor]:
        """For matrices W [n_row, n] that share the inputs: the W* that best maps y to what the original had.

        W* = W + C (H + pull)⁻¹ with C = Σ w (what W's output lacks) yᵀ.
        """
        lower = torch.linalg.cholesky(self._damped(pull)).float()
        for of_matrix in weights:
            gaps = of_matrix @ self._gaps if self._of_inputs else self._gaps
            yield of_matrix + torch.cholesky_solve(gaps.T, lower).T

    def _damped(self, share: float) -> Tensor:
        damped = self._squares.double()
        damped.diagonal().add_(max(share * float(damped.diagonal().mean()), torch.finfo(torch.float32).tiny))
        return damped
