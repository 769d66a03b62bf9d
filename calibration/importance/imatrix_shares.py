"""The importance matrix of a text as the sum over its shares, each a pass of its own (see `forward.convoy`).

The sums of the shares are added in float32, as a pass adds those of its groups of tokens, in the order of the text. So
the result is the same whatever machines the shares were on. It differs from that of one pass over the whole text by
the order of additions, and in the last digit of products.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from calibration.forward.convoy import Member, in_convoy
from calibration.forward.settings import ForwardSettings
from calibration.forward.timings import summed
from calibration.importance.imatrix import Entry, Imatrix
from calibration.importance.observers import Collected, RouterLoad, collect_imatrix
from calibration.text.chunks import Chunks
from quantize.sources.model_source import ModelSource
from quantize.telling import OnProgress, silent

__all__ = ["added", "collect_shares"]


def collect_shares(
    source: ModelSource,
    chunks: Chunks,
    places: Sequence[tuple[int, int]],
    settings: ForwardSettings,
    *,
    prior: float = 0.0,
    process_output: bool = False,
    n_active: int | None = None,
    progress: OnProgress = silent,
) -> list[Collected]:
    """What `collect_imatrix` finds in each share of a text, side by side: each weight is read once.

    Args:
        source, chunks, settings, prior, process_output, progress: see `collect_imatrix`.
        places: the first chunk of each share, and the one behind its last.
        n_active: see `in_convoy`.

    Raises:
        MoeGgufError: see `collect_imatrix`.
    """

    def share(member: Member) -> Collected:
        return collect_imatrix(
            member.source(source),
            chunks.part(*places[member.index]),
            prior=prior,
            process_output=process_output,
            settings=member.settings(settings),
            progress=member.progress,
        )

    return in_convoy(share, len(places), n_active=n_active, progress=progress)


def added(shares: Sequence[Collected], chunks: Chunks) -> Collected:
    """The sums and counts of all shares of a text, in their order; at least one. The stages tell seconds of threads."""
    first = shares[0].imatrix
    entries = {
        name: Entry(np.zeros_like(entry.sums), np.zeros_like(entry.counts))
        for name, entry in first.entries.items()
    }
    for share in shares:
        for name, entry in share.imatrix.entries.items():
            entries[name].sums += entry.sums
            entries[name].counts += entry.counts
    imatrix = Imatrix(entries, list(chunks.names), chunks.n_chunk, chunks.n_ctx, prior=first.prior)
    return Collected(
        imatrix, _load([share.load for share in shares]), summed([share.timings for share in shares])
    )


def _load(loads: Sequence[RouterLoad]) -> RouterLoad:
    n_token = sum(load.n_token for load in loads)
    tokens = np.sum([load.tokens for load in loads], axis=0)
    pairs = np.sum([load.pairs for load in loads], axis=0)
    entropy = np.zeros_like(loads[0].entropy)
    for load in loads:
        entropy += load.entropy * load.n_token
    return RouterLoad(n_token, tokens, pairs, entropy / max(1, n_token))
