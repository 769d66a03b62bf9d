"""Error feedback over a text: which chunks are held out, the pass, and what it found."""

from __future__ import annotations

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from calibration.feedback.embedding import encode_embedding
from calibration.feedback.fisher import Fisher, Lookups
from calibration.feedback.fitting import Aim, FeedbackSettings, Fitted, Fitter, MatrixFit
from calibration.feedback.pair import OnFitted, Pair
from calibration.feedback.records import Records
from calibration.feedback.two_streams import FeedbackPass
from calibration.forward.graph import EMBEDDING
from calibration.forward.saved_state import Keeper
from calibration.forward.settings import ForwardSettings, best_dtype
from calibration.forward.timings import Timings
from calibration.importance.imatrix import Imatrix
from calibration.importance.observers import ImatrixObserver, RouterLoad, RouterObserver
from calibration.judging.held_out import hold_out
from calibration.text.chunks import Chunks
from quantize.exceptions import TextError
from quantize.sources.model_source import ModelSource
from quantize.telling import OnProgress, silent
from quantize.tensors import QType

__all__ = ["FedBack", "FeedbackText", "feed_back"]

JUDGED_CHUNKS = 16
JUDGED_EVERY = 10


@dataclass(frozen=True)
class FeedbackText:
    """A text in three parts, each with some of all its passages, and how error feedback works on it.

    `fit` gives the moments, `chosen_by` chooses, and `judged`, about a tenth and at most 16 chunks, judges the file.
    """

    fit: Chunks
    chosen_by: Chunks
    judged: Chunks
    settings: FeedbackSettings

    @classmethod
    def of(cls, chunks: Chunks, settings: FeedbackSettings) -> FeedbackText:
        """Divide a text.

        Raises:
            TextError: there are not three chunks.
        """
        if chunks.n_chunk < 3:
            raise TextError(
                " + ".join(chunks.names),
                f"{chunks.n_token} tokens in chunks of {chunks.n_ctx} are too little for error feedback, which needs "
                "three chunks: it holds out a part to choose by and a part to judge by",
                "give more text",
            )
        rest, judged = hold_out(chunks, max(JUDGED_EVERY, -(-chunks.n_chunk // JUDGED_CHUNKS)))
        fit, chosen_by = hold_out(rest)
        return cls(fit, chosen_by, judged, settings)

    @property
    def seen(self) -> Chunks:
        """The parts that the pass sees, in its order."""
        tokens = np.concatenate([self.fit.tokens, self.chosen_by.tokens])
        return Chunks(self.fit.names, tokens, self.fit.bos_id)


@dataclass(frozen=True)
class FedBack:
    """What a pass of error feedback found: how each matrix was encoded, importances, the load of the router."""

    fits: tuple[MatrixFit, ...]
    imatrix: Imatrix
    load: RouterLoad
    timings: Timings


def feed_back(
    source: ModelSource,
    text: FeedbackText,
    qtypes: Mapping[str, QType],
    on_fitted: OnFitted,
    *,
    forward: ForwardSettings | None = None,
    jobs: int | None = None,
    keeper: Keeper | None = None,
    progress: OnProgress = silent,
) -> FedBack:
    """Encode the matrices of all layers so that their errors make up for each other.

    Args:
        source: the model.
        text: its part that chooses is added to the moments afterwards; that which judges is not looked at.
        qtypes: types by name of tensor; others stay as they are.
        on_fitted: is given each matrix that has a quantized type, with its blocks: those of the layers and, where they
            are not one, the embedding and the output matrix. An embedding that it is not given is to be plain.
        forward: see `calibration.forward.run.forward`; default bfloat16 products where the CPU has them.
        jobs: threads that encode; by default one for each processor.
        keeper: keeps the state behind a layer; what `on_fitted` was given of it must outlive the run, too.
        progress: told the tokens that are through.

    Raises:
        ActivationError, CheckpointError, OutputError, TokenizerError: see `calibration.forward.run.forward`.
    """
    chunks = text.seen
    importances, router = ImatrixObserver(chunks), RouterObserver(source.hparams)
    forward = forward or ForwardSettings(dtype=best_dtype())
    fisher, records = Fisher(), Records()

    def take(aim: Aim, fitted: Fitted) -> None:
        records.fits.append(fitted.fit)
        on_fitted(aim, fitted)

    with ThreadPoolExecutor(jobs or os.cpu_count()) as workers:
        pair = Pair(
            source,
            chunks.inputs,
            text.fit.n_token,
            qtypes,
            Fitter(text.settings, forward.device, workers),
            forward,
            importances=importances,
            observers=[router, fisher, records],
            on_fitted=take,
            token_weights=fisher.of,
            progress=progress,
        )

        def begin() -> Tensor | None:
            """Weigh the tokens, and encode the embedding."""
            n_fit = text.fit.n_token
            lookups = Lookups(source.hparams.n_embd, n_fit, forward.device)
            fisher.collect(
                source,
                chunks,
                lookups,
                forward,
                lambda moment: progress(replace(moment, stage=f"weighing tokens: {moment.stage}")),
            )
            qtype = qtypes.get(EMBEDDING)
            made = encode_embedding(source, qtype, lookups, n_fit, text.settings.rounds, workers)
            if made is None:
                return None
            take(*made)
            return made[1].values

        FeedbackPass(pair).run(begin, keeper)
    return FedBack(tuple(records.fits), importances.imatrix, router.load, pair.timings)
