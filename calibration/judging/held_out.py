"""Text that is held out from a fit, and what is kept of its activations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from calibration.forward.layers import Routing
from calibration.forward.settings import ForwardSettings
from calibration.forward.streams import Observer
from calibration.text.chunks import Chunks
from quantize.exceptions import TextError
from quantize.tensors import TensorSpec

__all__ = ["N_JUDGED", "Beginning", "Sampler", "Seen", "hold_out", "spread"]

N_JUDGED = 1024
"""Rows of held-out activations that are kept for each matrix; their outputs have n_row times as many numbers."""

HOLD_OUT_EVERY = 5


def hold_out(chunks: Chunks, every: int = HOLD_OUT_EVERY) -> tuple[Chunks, Chunks]:
    """Part a text: every fifth chunk (of less, the last) is held out, so that both parts hold all its passages.

    Returns the chunks to fit on and those to judge on.

    Raises:
        TextError: there are not two chunks.
    """
    if chunks.n_chunk < 2:
        raise TextError(
            f"{' + '.join(chunks.names)}: one chunk of {chunks.n_ctx} tokens is too little, a part of the text must "
            "be held out; give more text, or another one to judge on"
        )
    judged = np.arange(chunks.n_chunk) % every == every - 1
    judged[-1] |= not judged.any()
    return (
        Chunks(chunks.names, chunks.tokens[~judged], chunks.bos_id),
        Chunks(chunks.names, chunks.tokens[judged], chunks.bos_id),
    )


def spread(chunks: Chunks, n_chunk: int | None) -> Chunks:
    """At most so many chunks, evenly spread over a text, so that all its parts are among them."""
    if n_chunk is None or n_chunk >= chunks.n_chunk:
        return chunks
    picked = np.arange(n_chunk) * chunks.n_chunk // n_chunk
    return Chunks(chunks.names, chunks.tokens[picked], chunks.bos_id)


class Beginning(Observer):
    """Lets another observer see the first tokens only."""

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
            parts = Routing(routing.ids[:n], routing.weights[:n], routing.probs[:n])
            self._inner.routed(stream, bid, tokens[:n], parts)

    def _n_first(self, tokens: Tensor) -> int:
        return int((tokens < self._n_token).sum())  # tokens come in ascending order


@dataclass
class Seen:
    """The inputs of one matrix (or of several that share them): what was counted, and what was kept."""

    kept: Tensor  # [at most n_judged, n_per_row]
    n_tokens: int = 0
    n_held_out: int = 0
    n_kept: int = 0
    strength: float = 0.0  # Σ |x|² over the fitted tokens
    strength2: float = 0.0  # Σ |x|⁴

    def count(self, x: Tensor) -> None:
        """Take rows [t, n_per_row] of fitted tokens."""
        strength = x.float().square().sum(dim=1).double()
        self.n_tokens += len(x)
        self.strength += float(strength.sum())
        self.strength2 += float(strength.square().sum())

    def keep(self, x: Tensor, n_coming: int) -> None:
        """Take rows [t, n_per_row] of held-out tokens, and keep those whose turn it is among the `n_coming` in all."""
        limit = len(self.kept)
        if not len(x):
            return
        ranks = torch.arange(self.n_held_out, self.n_held_out + len(x))
        turns = ((ranks + 1) * limit // n_coming > ranks * limit // n_coming).to(x.device)
        chosen = x[turns]
        self.kept[self.n_kept : self.n_kept + len(chosen)] = chosen
        self.n_kept += len(chosen)
        self.n_held_out += len(x)

    @property
    def n_effective(self) -> float:
        """Kish's effective number of tokens behind the importances: as many of equal |x|² would tell as much."""
        return self.strength**2 / self.strength2 if self.strength2 > 0 else 0.0


class Sampler(Observer):
    """Keeps, for each matrix, some rows of its held-out inputs, spread evenly over those that reach it."""

    def __init__(
        self,
        wants: Callable[[TensorSpec], bool],
        n_fit: int,
        n_held_out: int,
        limit: int,
        settings: ForwardSettings,
    ) -> None:
        self._wants = wants
        self._n_fit = n_fit
        self._n_held_out = n_held_out
        self._limit = limit
        self._settings = settings
        self._seen: dict[tuple[str, int], Seen] = {}
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
        wanted = [spec for spec in specs if self._wants(spec)]
        if not wanted:
            return
        has_experts = len(wanted[0].shape) > 2
        n_coming = int(self._n_routed[xid]) if has_experts else self._n_held_out
        seen = self._seen.get((wanted[0].name, xid))
        if seen is None:
            shape = (min(n_coming, self._limit), wanted[0].n_per_row)
            seen = Seen(torch.empty(shape, dtype=self._settings.dtype, device=self._settings.device))
            self._seen |= {(spec.name, xid): seen for spec in wanted}
        n_fit = int((tokens < self._n_fit).sum())  # they come first
        seen.count(x[:n_fit])
        seen.keep(x[n_fit:], n_coming)

    def pop(self, spec: TensorSpec, xid: int) -> Seen:
        """Give away what was seen of a matrix; see `Observer.pop`."""
        return self._seen.pop((spec.name, xid), None) or Seen(torch.empty(0, spec.n_per_row))
