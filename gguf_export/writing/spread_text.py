"""Passes over a text on many machines: its shares are spread over the nodes of a cluster, and added up here."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import TypeVar

import torch

from calibration.forward.convoy import share_places
from calibration.forward.settings import ForwardSettings
from calibration.importance.imatrix_shares import added, collect_shares
from calibration.importance.observers import Collected
from calibration.text.chunks import Chunks
from gguf_export.cluster.connection import connected
from gguf_export.cluster.engine import RayEngine, Shared
from gguf_export.cluster.groups import Work, in_groups
from quantize.sources.model_source import ModelSource
from quantize.telling import Note, OnProgress, Progress, discard, silent

__all__ = ["spread_encoding", "spread_imatrix", "spread_shares"]

Item = TypeVar("Item")
Result = TypeVar("Result")


def spread_imatrix(
    address: str,
    source: ModelSource,
    chunks: Chunks,
    settings: ForwardSettings,
    *,
    prior: float = 0.0,
    process_output: bool = False,
    progress: OnProgress = silent,
    note: Note = discard,
) -> Collected:
    """What `collect_imatrix` finds, from shares that the nodes of a Ray cluster take through the model.

    Args:
        address, note: see `spread_shares`.
        source: the model, which lies at the same path on all nodes, in the same state.
        chunks, settings, prior, process_output, progress: see `collect_imatrix`.

    Raises:
        MoeGgufError: see `spread_shares` and `collect_imatrix`.
    """
    started = time.monotonic()
    work = partial(
        collect_shares, source, chunks, settings=settings, prior=prior, process_output=process_output
    )
    collected = added(spread_shares(address, work, [chunks], progress=progress, note=note), chunks)
    collected.timings.total = time.monotonic() - started
    return collected


def spread_shares(
    address: str,
    work: Work[tuple[int, int], Result],
    texts: Sequence[Chunks],
    *,
    progress: OnProgress = silent,
    note: Note = discard,
) -> list[Result]:
    """What the nodes of a cluster find in the shares of some texts, in the order of the shares.

    Args:
        address: of the cluster, see `connected`.
        work: takes shares through the model: for each the first chunk and the one behind its last, counted through all
            texts.
        texts: chunks of the same number of tokens.
        progress: told the tokens that are through, of all texts.
        note: told of nodes that are gone, and of work that was done again.

    Raises:
        ChoiceError: the cluster cannot be reached, or does not work.
        MoeGgufError: whatever the work raises.
    """
    n_chunk = sum(text.n_chunk for text in texts)
    totals = {"tokens": n_chunk * texts[0].n_ctx, "chunks": n_chunk}

    def of_all(told: Progress) -> None:
        """Tell of all shares, for those that have begun tell of themselves."""
        progress(replace(told, total=max(told.done, totals.get(told.unit, told.total))))

    with connected(address) as cluster:
        return in_groups(cluster, work, share_places(n_chunk), progress=of_all, note=note)


class SpreadEngine:
    """An engine (`quantize.engine.Engine`) for encodings that are judged: its units are done by the nodes of a cluster.

    The function of a `map`, in which there are activations, is sent once to each process, and torch multiplies with one
    thread there.
    """

    def __init__(self, engine: RayEngine) -> None:
        self._engine = engine

    def map(
        self, function: Callable[[Item], Result], items: Iterable[Item]
    ) -> Generator[tuple[Item, Result], None, None]:
        """See `RayEngine.map`."""
        yield from self._engine.map(partial(_with_one_thread, self._engine.share(function)), items)


@contextmanager
def spread_encoding(address: str, note: Note = discard) -> Iterator[SpreadEngine]:
    """An engine of a cluster, to which this process is connected for as long as the block.

    Raises:
        ChoiceError: the cluster cannot be reached.
    """
    with connected(address) as cluster:
        yield SpreadEngine(RayEngine(cluster, note=note))


def _with_one_thread(function: Shared[Callable[[Item], Result]], item: Item) -> Result:
    torch.set_num_threads(1)
    return function.value(item)
