"""How much each token counts in each matrix: the squared length of the gradient of the loss by the matrix's result."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from calibration.forward.gradients import GradientObserver
from calibration.forward.stored import Matrix
from quantize.tensors import TensorSpec

__all__ = ["TokenWeights"]

Tokens = npt.NDArray[np.int64]
Weights = npt.NDArray[np.float32]


class TokenWeights(GradientObserver):
    """Keeps |g|² of each token and matrix in the layers, 4 bytes each (8 more for each token of an expert)."""

    def __init__(self) -> None:
        self._groups: dict[tuple[str, int], list[tuple[Tensor, Tensor]]] = defaultdict(list)
        self._kept: dict[tuple[str, int], tuple[Tokens, Weights]] = {}
        self._shared: dict[int, Tokens] = {}

    def gradients(self, spec: TensorSpec, xid: int, tokens: Tensor, x: Tensor, g: Tensor) -> None:
        """Add a group."""
        self._groups[spec.name, xid].append((tokens, g.float().square().sum(-1).cpu()))

    def finished(self, matrix: Matrix) -> None:
        """Join the groups of a matrix; matrices with the same tokens share their places."""
        key = (matrix.spec.name, matrix.xid)
        groups = self._groups.pop(key, [])
        if not groups:
            return
        tokens, weights = (torch.cat(parts).numpy() for parts in zip(*groups, strict=True))
        digest = hash(tokens.tobytes())
        shared = self._shared.setdefault(digest, tokens)
        self._kept[key] = (shared if np.array_equal(shared, tokens) else tokens, weights)

    def of(self, name: str, xid: int = 0) -> tuple[Tokens, Weights]:
        """The tokens int64 [t] that reached a matrix, ascending places in the text, and their weights f32 [t].

        Both are empty where no token did, and for tensors outside the layers.
        """
        return self._kept.get((name, xid), (np.empty(0, np.int64), np.empty(0, np.float32)))
