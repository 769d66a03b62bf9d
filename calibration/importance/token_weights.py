"""How much each token counts in each matrix: the squared length of the gradient of the loss by the matrix's result."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from calibration.forward.backward import forward_and_back
from calibration.forward.gradients import GradientObserver
from calibration.forward.settings import ForwardSettings, best_dtype
from calibration.forward.stored import Matrix
from calibration.text.chunks import Chunks
from quantize.sources.model_source import ModelSource
from quantize.telling import OnProgress, silent
from quantize.tensors import TensorSpec

__all__ = ["TokenWeights", "collect_token_weights"]

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


def collect_token_weights(
    source: ModelSource,
    chunks: Chunks,
    *,
    settings: ForwardSettings | None = None,
    seed: int = 0,
    progress: OnProgress = silent,
) -> TokenWeights:
    """Run a text through a model and back, and keep how much each token counts in each matrix.

    Args:
        source: the model.
        chunks: the text; n_layer x n_token x n_embd numbers are kept on the way, in the scratch folder if there is one.
        settings: see `forward`; default bfloat16 products where the CPU has them.
        seed: of the labels that are drawn.
        progress: is told the tokens on the way there, the layers on the way back.

    Raises:
        ActivationError, CheckpointError, OutputError, TokenizerError: see `forward`.
    """
    weights = TokenWeights()
    settings = settings or ForwardSettings(dtype=best_dtype())
    forward_and_back(source, chunks.inputs, [weights], settings=settings, seed=seed, progress=progress)
    return weights
