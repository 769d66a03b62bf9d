"""Passes over a text on many machines: its shares are spread over the nodes of a cluster, and added up here."""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial

from calibration.forward.convoy import share_places
from calibration.forward.settings import ForwardSettings
from calibration.importance.imatrix_shares import added, collect_shares
from calibration.importance.observers import Collected
from calibration.text.chunks import Chunks
from gguf_export.cluster.connection import connected
from gguf_export.cluster.groups import in_groups
from quantize.sources.model_source import ModelSource
from quantize.telling import Note, OnProgress, discard, silent

__all__ = ["of_all", "spread_imatrix"]


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
        address: of the cluster, see `connected`.
        source: the model, which lies at the same path on all nodes, in the same state.
        chunks, settings, prior, process_output, progress: see `collect_imatrix`.
        note: told of nodes that are gone, and of work that was done again.

    Raises:
        ChoiceError: the cluster cannot be reached, or does not work.
        MoeGgufError: see `collect_imatrix`.
    """
    started = time.monotonic()
    work = partial(
        collect_shares, source, chunks, settings=settings, prior=prior, process_output=process_output
    )
    with connected(address) as cluster:
        places = share_places(chunks.n_chunk)
        shares = in_groups(cluster, work, places, progress=of_all(chunks, progress), note=note)
    collected = added(shares, chunks)
    collected.timings.total = time.monotonic() - started
    return collected


def of_all(chunks: Chunks, progress: OnProgress) -> OnProgress:
    """Progress on a whole text, out of that on the shares that have begun."""
    totals = {"tokens": chunks.n_token, "chunks": chunks.n_chunk}
    return lambda told: progress(replace(told, total=max(told.done, totals.get(told.unit, told.total))))
