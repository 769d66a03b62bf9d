"""A comparison as the sum over shares of its texts, each a pass of its own (see `forward.convoy`).

Scores are by target, so nothing of them is summed; the sums of the routers are added in the order of the texts. The
rows of output matrices are decoded by each pass for itself: one that waits must not hold logits, which are large.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from calibration.forward.convoy import Member, in_convoy
from calibration.forward.settings import ForwardSettings
from calibration.forward.timings import summed
from calibration.judging.router_agreement import RouterComparer
from calibration.judging.side_by_side import Activations, Base, Model, Scored, scored, starts_of
from calibration.text.chunks import Chunks
from quantize.telling import OnProgress, silent

__all__ = ["joined", "score_shares"]

LOGIT_BYTES = 128 << 20
"""Memory for the logits of one share; a chunk of all models has a place in any case."""


def score_shares(
    base: Base,
    models: Sequence[Model],
    texts: Sequence[Chunks],
    places: Sequence[tuple[int, int]],
    *,
    activations: Activations,
    settings: ForwardSettings,
    n_active: int | None = None,
    progress: OnProgress = silent,
) -> list[Scored]:
    """What `compare` finds in each share of the texts, side by side: every source is read once.

    Args:
        base, models, texts, activations, settings, progress: see `compare`.
        places: the first chunk of each share and the one behind its last, counted through all texts.
        n_active: see `in_convoy`.

    Raises:
        MoeGgufError: see `compare`.
    """

    def share(member: Member) -> Scored:
        def seated(model: Model) -> Model:
            return replace(model, source=member.source(model.source))

        return scored(
            seated(base) if base.kind == "model" else base,
            [seated(model) for model in models],
            texts,
            place=places[member.index],
            activations=activations,
            settings=replace(member.settings(settings), logit_bytes=LOGIT_BYTES),
            progress=member.progress,
        )

    return in_convoy(share, len(places), n_active=n_active, progress=progress)


def joined(texts: Sequence[Chunks], shares: Sequence[Scored]) -> Scored:
    """What was found of all chunks of the texts, from all shares in their order; at least one."""
    routers = None
    first = shares[0].routers
    if first is not None:
        n_stream, _, n_layer = first.same.shape
        routers = RouterComparer(n_stream, n_layer, starts_of(texts) * texts[0].n_ctx)
        for share in shares:
            assert share.routers is not None
            routers.add(share.routers)
    n_model = len(shares[0].scores)
    scores = [[score for share in shares for score in share.scores[model]] for model in range(n_model)]
    return Scored(scores, routers, summed([share.timings for share in shares]))
