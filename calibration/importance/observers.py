"""Observers of a calibration pass: importances per tensor and expert, and where the router sent the tokens."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from calibration.forward.routing import Routing
from calibration.forward.run import forward
from calibration.forward.saved_state import Keeper
from calibration.forward.settings import ForwardSettings, best_dtype
from calibration.forward.streams import Given, Observer, Stream
from calibration.forward.timings import Timings
from calibration.importance.imatrix import Entry, Imatrix
from calibration.importance.imatrix_files import COUNTS, SUMS
from calibration.text.chunks import Chunks
from quantize.hparams import Hparams
from quantize.sources.model_source import ModelSource
from quantize.telling import OnProgress, silent
from quantize.tensors import Array, TensorSpec

__all__ = ["Collected", "ImatrixObserver", "RouterLoad", "RouterObserver", "collect_imatrix"]

STARVED_SHARE = 0.05
"""An expert that got less than this of an even share of its layer's tokens is starved."""


class ImatrixObserver(Observer):
    """Sums the squares of the inputs of every matrix of one stream, as llama-imatrix does.

    llama.cpp's tools/imatrix/imatrix.cpp, IMatrixCollector::collect_imatrix, is the source. The entry of a tensor grows
    in place in `imatrix`; it is complete for an expert when `forward` hands out its weights. Sums are float32, as in
    the file, so that an imatrix used at once weighs exactly as one that was written and read.
    """

    def __init__(self, chunks: Chunks, *, stream: int = 0, prior: float = 0.0) -> None:
        self.stream = stream
        self.imatrix = Imatrix(
            entries={},
            datasets=list(chunks.names),
            chunk_count=chunks.n_chunk,
            chunk_size=chunks.n_ctx,
            prior=prior,
        )

    def inputs(self, stream: int, specs: Sequence[TensorSpec], xid: int, tokens: Tensor, x: Tensor) -> None:
        """Add a group of rows [t, n_per_row]."""
        if stream != self.stream:
            return
        wide = x.float()
        squares = (
            wide.square() if wide is x else wide.square_()
        )  # in the memory of a copy, where there is one
        sums = squares.sum(dim=0).cpu().numpy()
        for spec in specs:
            entry = self.imatrix.entries.get(spec.name)
            if entry is None:
                shape = (spec.n_matrix, spec.n_per_row)
                entry = Entry(np.zeros(shape, np.float32), np.zeros(spec.n_matrix, np.int64))
                self.imatrix.entries[spec.name] = entry
            entry.sums[xid] += sums
            entry.counts[xid] += len(x)

    def kept(self) -> dict[str, Array]:
        """The sums and tokens of each entry, by their names in the GGUF form."""
        entries = self.imatrix.entries.items()
        return {name + SUMS: entry.sums for name, entry in entries} | {
            name + COUNTS: entry.counts for name, entry in entries
        }

    def restore(self, arrays: Mapping[str, Array]) -> None:
        """Take back what was `kept`; a pass begins without entries."""
        names = [name.removesuffix(SUMS) for name in arrays if name.endswith(SUMS)]
        self.imatrix.entries.update(
            {name: Entry(arrays[name + SUMS].copy(), arrays[name + COUNTS].copy()) for name in names}
        )


@dataclass
class RouterLoad:
    """Counts of the tokens that the router sent to each expert, by layer; layers without a router stay zero.

    `tokens` int64 [n_layer, E]: tokens that each expert saw. `pairs` int64 [n_layer, E, E]: tokens that went to both
    (the diagonal repeats `tokens`). `entropy` [n_layer]: mean entropy in nats of the router's probabilities: ln(E)
    where it cannot tell the experts apart, 0 where it is certain.
    """

    n_token: int
    tokens: npt.NDArray[np.int64]
    pairs: npt.NDArray[np.int64]
    entropy: npt.NDArray[np.float64]

    @property
    def even_share(self) -> float:
        """Tokens that each expert would get if the router spread them evenly; 0 where there is no router."""
        n_layer, n_expert = int(self.tokens.any(axis=1).sum()), self.tokens.shape[1]
        return int(self.tokens.sum()) / (n_layer * n_expert) if n_layer else 0.0

    def starved(self, fewer_than: int | None = None) -> list[tuple[int, int, int]]:
        """(bid, xid, tokens) of the experts that fewer tokens reached, by default than 5 % of an even share."""
        if fewer_than is None:
            fewer_than = math.ceil(STARVED_SHARE * self.even_share)
        has_router = self.tokens.sum(axis=1, keepdims=True) > 0
        places = np.argwhere((self.tokens < fewer_than) & has_router)
        return [(int(bid), int(xid), int(self.tokens[bid, xid])) for bid, xid in places]


class RouterObserver(Observer):
    """Counts where the router of one stream sends the tokens; `load` is complete after the pass."""

    def __init__(self, hparams: Hparams, *, stream: int = 0) -> None:
        n_layer, n_expert = hparams.n_layer, hparams.n_expert
        self.stream = stream
        self.load = RouterLoad(
            n_token=0,
            tokens=np.zeros((n_layer, n_expert), np.int64),
            pairs=np.zeros((n_layer, n_expert, n_expert), np.int64),
            entropy=np.zeros(n_layer),
        )
        self._seen = np.zeros(n_layer, np.int64)

    def routed(self, stream: int, bid: int, tokens: Tensor, routing: Routing) -> None:
        """Add a group of tokens."""
        if stream != self.stream:
            return
        chosen = torch.zeros_like(routing.probs).scatter_(-1, routing.ids, 1.0)  # [t, E]
        pairs = (
            (chosen.T @ chosen).round().long().cpu().numpy()
        )  # exact: a group has far fewer than 2^24 tokens
        load = self.load
        load.pairs[bid] += pairs
        load.tokens[bid] += np.diagonal(pairs)
        total = float(torch.special.entr(routing.probs.double()).sum())
        seen = int(self._seen[bid])
        load.entropy[bid] = (load.entropy[bid] * seen + total) / (seen + len(tokens))
        self._seen[bid] = seen + len(tokens)
        load.n_token = int(self._seen.max())

    def kept(self) -> dict[str, Array]:
        """The arrays of `load`, and the tokens seen in each layer."""
        load = self.load
        return {"tokens": load.tokens, "pairs": load.pairs, "entropy": load.entropy, "seen": self._seen}

    def restore(self, arrays: Mapping[str, Array]) -> None:
        """Take back what was `kept`."""
        for name, array in self.kept().items():
            array[...] = arrays[name]
        self.load.n_token = int(self._seen.max())


@dataclass(frozen=True)
class Collected:
    """The result of a calibration pass: importances, the load of the router, and where the time went."""

    imatrix: Imatrix
    load: RouterLoad
    timings: Timings


def collect_imatrix(
    source: ModelSource,
    chunks: Chunks,
    *,
    prior: float = 0.0,
    process_output: bool = False,
    observers: Sequence[Observer] = (),
    on_weights: Callable[[TensorSpec, int, Array, Imatrix, Given], None] | None = None,
    settings: ForwardSettings | None = None,
    keeper: Keeper | None = None,
    progress: OnProgress = silent,
) -> Collected:
    """Run calibration text through a model and keep importances and router load.

    `on_weights(spec, xid, weights, imatrix, given)` gets every matrix once, when its importances in `imatrix` are
    complete: it is encoded with `imatrix.importance(spec.name, xid)`, and with what further observers have `given`
    away. A `prior` needs the mean over the experts, so the down projections of a layer are then kept until the layer
    is done.

    Args:
        source: the model.
        chunks: the text, from `make_chunks`.
        prior: see `Imatrix`.
        process_output: collect output.weight too, as llama-imatrix does with --process-output.
        observers: further observers of the same pass.
        on_weights: see above.
        settings: see `forward`; default bfloat16 products where the CPU has them.
        keeper: see `forward`.
        progress: is told how many tokens have passed the model.

    Raises:
        ActivationError, CheckpointError, OutputError, TokenizerError: see `forward`.
        ImatrixError: the prior is no number of tokens.
    """
    importances = ImatrixObserver(chunks, prior=prior)
    router = RouterObserver(source.hparams)

    def hand_over(spec: TensorSpec, xid: int, weights: Array, given: Given) -> None:
        if on_weights is not None:
            on_weights(spec, xid, weights, importances.imatrix, given)

    timings = forward(
        [Stream(source, name=source.label)],
        chunks.inputs,
        settings=settings or ForwardSettings(dtype=best_dtype()),
        observers=[importances, router, *observers],
        observe_output=process_output,
        on_weights=hand_over if on_weights is not None else None,
        hold_down=prior > 0 and on_weights is not None,
        keeper=keeper,
        progress=progress,
    )
    return Collected(importances.imatrix, router.load, timings)
