"""How much each token counts at each matrix, by the gradient of the loss there; and the gradients at the embedding.

The text goes through the model and back, as many chunks at a time as the hidden states of their layers fit into memory:
with a scratch folder all of them, so that each weight is read twice, else more often.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from calibration.feedback.moments import Moments, Visit
from calibration.forward.backward import forward_and_back
from calibration.forward.gradients import GradientObserver
from calibration.forward.settings import ForwardSettings
from calibration.forward.streams import Observer
from calibration.importance.token_weights import TokenWeights
from calibration.text.chunks import Chunks
from quantize.sources.model_source import ModelSource
from quantize.telling import OnProgress
from quantize.tensors import Array, TensorSpec

__all__ = ["Fisher", "Lookups"]

LAYER_BYTES = 2 << 30
"""Memory for the hidden states with which layers begin."""

MOST_HELD_OUT = 2048  # tokens whose gradients at the embedding are kept as they are


class Lookups(GradientObserver):
    """The gradients by rows that were looked up: of the first `n_fit` tokens their moments, some others as they are."""

    def __init__(self, n_embd: int, n_fit: int, device: str) -> None:
        self.moments = Moments(n_embd, 1, device, of_inputs=False)
        self.n_held_out = 0
        self.first = 0
        """Place in the text of the first token of the pass that is watched."""
        self._held_out: list[tuple[Tensor, Tensor]] = []
        self._n_fit = n_fit

    def embedded(self, spec: TensorSpec, tokens: Tensor, token_ids: Tensor, g: Tensor) -> None:
        """Add a group."""
        n = int((tokens + self.first < self._n_fit).sum())
        self.moments.add(Visit(g[:n], torch.zeros(n, 1, device=g.device)))
        left = MOST_HELD_OUT - self.n_held_out
        if left > 0 and n < len(g):
            self._held_out.append((token_ids[n:][:left].cpu(), g[n:][:left].float().cpu()))
            self.n_held_out += len(self._held_out[-1][0])

    def cost(self, difference: Tensor) -> float:
        """The summed squared change of the loss on held-out tokens, by errors of the rows [V, D]."""
        return sum(
            float((difference[ids] * g).sum(1).square().sum(dtype=torch.float64)) for ids, g in self._held_out
        )


class Fisher(Observer):
    """Weights of the tokens of a text, which survive a run that is stopped; `collect` finds them."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, int], tuple[Tensor, Tensor]] = {}

    def collect(
        self,
        source: ModelSource,
        chunks: Chunks,
        lookups: Lookups,
        settings: ForwardSettings,
        progress: OnProgress,
    ) -> None:
        """Run a text through a model and back.

        Args:
            source: the model.
            chunks: the text.
            lookups: sees the gradients at the embedding.
            settings: see `forward`; a scratch folder takes the hidden states of all layers.
            progress: see `forward_and_back`.

        Raises:
            ActivationError, CheckpointError, OutputError, TokenizerError: see `calibration.forward.run.forward`.
        """
        hparams = source.hparams
        n_bytes = hparams.n_layer * hparams.n_embd * settings.hidden_dtype.itemsize * chunks.n_ctx
        n_together = chunks.n_chunk if settings.scratch is not None else max(1, LAYER_BYTES // n_bytes)
        parts: dict[tuple[str, int], list[tuple[Tensor, Tensor]]] = {}
        for first in range(0, chunks.n_chunk, n_together):
            lookups.first = first * chunks.n_ctx
            weights = TokenWeights()
            part = chunks.part(first, first + n_together)
            forward_and_back(source, part.inputs, [weights, lookups], settings=settings, progress=progress)
            for spec in source.specs():
                for xid in range(spec.n_matrix):
                    places, squares = weights.of(spec.name, xid)
                    if len(places):
                        found = (torch.from_numpy(places) + lookups.first, torch.from_numpy(squares))
                        parts.setdefault((spec.name, xid), []).append(found)
        for key, of_matrix in parts.items():
            tokens, lengths = (torch.cat(pieces) for pieces in zip(*of_matrix, strict=True))
            mean = float(lengths.mean())
            if mean > 0:
                self._found[key] = (tokens, lengths / mean)

    def of(self, name: str, xid: int, tokens: Tensor) -> Tensor | None:
        """How much tokens int64 [t], ascending, count at a matrix: float32 [t] with a mean of 1; None if unknown."""
        known, weights = self._found.get((name, xid), (None, None))
        if known is None or weights is None:
            return None
        places = torch.searchsorted(known, tokens).clamp(max=len(known) - 1)
        return torch.where(known[places] == tokens, weights[places], 1.0)

    def kept(self) -> dict[str, Array]:
        """Tokens and weights of each matrix."""
        return {
            f"{name}.{xid}.{part}": array.numpy()
            for (name, xid), pair in self._found.items()
            for part, array in zip(("tokens", "weights"), pair, strict=True)
        }

    def restore(self, arrays: Mapping[str, Array]) -> None:
        """Take back what was `kept`."""
        for key, tokens in arrays.items():
            place, _, part = key.rpartition(".")
            if part == "tokens":
                name, _, xid = place.rpartition(".")
                weights = np.array(arrays[f"{place}.weights"])
                self._found[name, int(xid)] = (torch.from_numpy(np.array(tokens)), torch.from_numpy(weights))
