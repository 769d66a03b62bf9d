"""The text that errors are fitted on, in shares, each a pass of its own (see `forward.convoy`)."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from calibration.forward.convoy import Member, in_convoy
from calibration.forward.settings import ForwardSettings
from calibration.importance.imatrix_shares import added
from calibration.importance.observers import Collected, collect_imatrix
from calibration.judging.held_out import InputCounter, InputSample
from calibration.judging.output_error import Fitted, is_judged
from calibration.text.chunks import Chunks
from quantize.sources.model_source import ModelSource
from quantize.telling import OnProgress, silent

__all__ = ["FitShare", "fit_shares", "fitted_of"]

FitShare = tuple[Collected, dict[tuple[str, int], InputSample]]
"""What was found of a share: importances and routers, and the tokens that reached each matrix (name, xid)."""


def fit_shares(
    source: ModelSource,
    fit: Chunks,
    places: Sequence[tuple[int, int]],
    settings: ForwardSettings,
    *,
    prior: float = 0.0,
    n_active: int | None = None,
    progress: OnProgress = silent,
) -> list[FitShare]:
    """What `measure_errors` needs to know of each share of the text to fit on; arguments as of `collect_shares`.

    Raises:
        MoeGgufError: see `collect_imatrix`.
    """

    def share(member: Member) -> FitShare:
        counter = InputCounter(is_judged)
        collected = collect_imatrix(
            member.source(source),
            fit.part(*places[member.index]),
            prior=prior,
            observers=[counter],
            settings=member.settings(settings),
            progress=member.progress,
        )
        return collected, counter.counted

    return in_convoy(share, len(places), n_active=n_active, progress=progress)


def fitted_of(fit: Chunks, shares: Sequence[FitShare]) -> Fitted:
    """What all shares have found, in their order; at least one."""
    collected = added([share for share, _ in shares], fit)
    totals: dict[tuple[str, int], InputSample] = {}
    for _, counted in shares:
        for key, sample in counted.items():
            totals.setdefault(key, InputSample(torch.empty(0))).add(sample)
    return Fitted(collected.imatrix, collected.load, totals)
