"""Text that is held out from a fit, and the inputs of matrices that are kept of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from calibration.forward.routing import Routing
from calibration.forward.settings import ForwardSettings
from calibration.forward.streams import Observer
from calibration.text.chunks import Chunks
from quantize.exceptions import TextError
from quantize.tensors import TensorSpec

__all__ = ["N_JUDGED", "FirstTokens", "HeldOutSampler", "InputCounter", "InputSample", "hold_out", "spread"]

N_JUDGED = 1024
"""Rows of held-out activations that are kept for each matrix; their outputs have n_row times as many numbers."""

HOLD_OUT_EVERY = 5


def hold_out(chunks: Chunks, every: int = HOLD_OUT_EVERY) -> tuple[Chunks, Chunks]:
    """Divide a text: every fifth chunk (of less, the last) is held out, so that both halves hold all its passages.

    Returns the chunks to fit on and those to judge on.

    Raises:
        TextError: there are not two chunks.
    """
    if chunks.n_chunk < 2:
        raise TextError(
            " + ".join(chunks.names),
            f"one chunk of {chunks.n_ctx} tokens is too little, a part of the text must be held out",
            "give more text, or another one to judge on",
        )
    judged = np.arange(chunks.n_chunk) % every == every - 1
    judged[-1] |= not judged.any()
    return (
        Chunks(chunks.names, chunks.tokens[~judged], chunks.bos_id),
        Chunks(chunks.names, chunks.tokens[judged], chunks.bos_id),
    )


def spread(chunks: Chunks, n_chunk: int | None) -> Chunks:
    """At most `n_chunk` chunks, evenly spread over the text; all of them where that is None."""
    if n_chunk is None or n_chunk >= chunks.n_chunk:
        return chunks
    picked = np.arange(n_chunk) * chunks.n_chunk // n_chunk
    return Chunks(chunks.names, chunks.tokens[picked], chunks.bos_id)


class FirstTokens(Observer):
    """Lets another observer see the first `n_token` tokens only."""

    def __init__(self, inner: Observer, n_token: int) -> None:
        self._inner = inner
        self._n_token = n_token

    def inputs(self, stream: int, specs: Sequence[TensorSpec], xid: int, tokens: Tensor, x: Tensor) -> None:
        """Pass the rows of those tokens on."""
        n = self._n_first(tokens)
        if n:
            self._inner.inputs(stream, specs, xid, tokens[:n], x[:n])

    def routed(self, stream: int, bid: int, tokens: Tensor, routing: Routing) -> None:
        """Pass the routes of those tokens on."""
        n = self._n_first(tokens)
        if n:
            first = Routing(routing.ids[:n], routing.weights[:n], routing.probs[:n])
            self._inner.routed(stream, bid, tokens[:n], first)

    def _n_first(self, tokens: Tensor) -> int:
        return int((tokens < self._n_token).sum())  # tokens come in ascending order


@dataclass
class InputSample:
    """The inputs of one matrix (or of several that share them): counted where fitted, sampled where held out."""

    kept: Tensor  # [at most n_judged, n_per_row]
    n_tokens: int = 0  # fitted
    n_held_out: int = 0
    n_kept: int = 0
    strength: float = 0.0  # Σ |x|² over the fitted tokens
    strength2: float = 0.0  # Σ |x|⁴

    def count(self, x: Tensor) -> None:
        """Count rows [t, n_per_row] of fitted tokens."""
        strength = x.float().square().sum(dim=1).double()
        self.n_tokens += len(x)
        self.strength += float(strength.sum())
        self.strength2 += float(strength.square().sum())

    def add(self, other: InputSample) -> None:
        """Take over what another one has counted."""
        self.n_tokens += other.n_tokens
        self.strength += other.strength
        self.strength2 += other.strength2

    def keep(self, x: Tensor, n_coming: int) -> None:
        """Keep at most `len(kept)` of the `n_coming` rows of held-out tokens, evenly spaced.

        The rows x [t, n_per_row] are the next ones of them.
        """
        limit = len(self.kept)
        if not len(x):
            return
        ranks = torch.arange(self.n_held_out, self.n_held_out + len(x))
        is_kept = ((ranks + 1) * limit // n_coming > ranks * limit // n_coming).to(x.device)
        chosen = x[is_kept]
        self.kept[self.n_kept : self.n_kept + len(chosen)] = chosen
        self.n_kept += len(chosen)
        self.n_held_out += len(x)

    @property
    def n_effective(self) -> float:
        """Kish's effective number of fitted tokens.

        It is the number of tokens of equal |x|² that would give an estimate of the same variance.
        """
        return self.strength**2 / self.strength2 if self.strength2 > 0 else 0.0


class InputCounter(Observer):
    """Counts the tokens that reach each matrix for which `is_judged(spec)`, as fitted ones, and keeps none of them."""

    def __init__(self, is_judged: Callable[[TensorSpec], bool]) -> None:
        self._is_judged = is_judged
        self.counted: dict[tuple[str, int], InputSample] = {}

    def inputs(self, stream: int, specs: Sequence[TensorSpec], xid: int, tokens: Tensor, x: Tensor) -> None:
        """Count a group of rows."""
        group = InputSample(x.new_empty(0))
        group.count(x)
        for spec in specs:
            if self._is_judged(spec):
                self.counted.setdefault((spec.name, xid), InputSample(torch.empty(0))).add(group)


class HeldOutSampler(Observer):
    """Keeps, for each matrix, some rows of its held-out inputs, spread evenly over those that reach it.

    The first `n_fit` tokens of the text are fitted and only counted, the `n_held_out` behind them are sampled: at most
    `limit` rows of a matrix for which `is_judged(spec)`, in the type and on the device of `settings`.
    """

    def __init__(
        self,
        is_judged: Callable[[TensorSpec], bool],
        n_fit: int,
        n_held_out: int,
        limit: int,
        settings: ForwardSettings,
    ) -> None:
        self._is_judged = is_judged
        self._n_fit = n_fit
        self._n_held_out = n_held_out
        self._limit = limit
        self._settings = settings
        self._samples: dict[tuple[str, int], InputSample] = {}
        self._bid = -1
        self._n_routed = torch.zeros(0, dtype=torch.int64)  # held-out tokens to each expert of layer `_bid`

    def routed(self, stream: int, bid: int, tokens: Tensor, routing: Routing) -> None:
        """Count the held-out tokens that are about to reach each expert."""
        n_expert = routing.probs.shape[-1]
        if bid != self._bid:
            self._bid, self._n_routed = bid, torch.zeros(n_expert, dtype=torch.int64)
        n_fit = int((tokens < self._n_fit).sum())
        self._n_routed += torch.bincount(routing.ids[n_fit:].reshape(-1).cpu(), minlength=n_expert)

    def inputs(self, stream: int, specs: Sequence[TensorSpec], xid: int, tokens: Tensor, x: Tensor) -> None:
        """Count the tokens, and keep some of those that are held out."""
        judged = [spec for spec in specs if self._is_judged(spec)]
        if not judged:
            return
        n_coming = int(self._n_routed[xid]) if judged[0].has_experts else self._n_held_out
        sample = self._samples.get((judged[0].name, xid))
        if sample is None:
            shape = (min(n_coming, self._limit), judged[0].n_per_row)
            sample = InputSample(torch.empty(shape, dtype=self._settings.dtype, device=self._settings.device))
            self._samples |= {(spec.name, xid): sample for spec in judged}
        n_fit = int((tokens < self._n_fit).sum())  # they come first
        sample.count(x[:n_fit])
        sample.keep(x[n_fit:], n_coming)

    def pop(self, spec: TensorSpec, xid: int) -> InputSample:
        """Give away the sample of a matrix, an empty one where no token came; see `Observer.pop`."""
        return self._samples.pop((spec.name, xid), None) or InputSample(torch.empty(0, spec.n_per_row))
