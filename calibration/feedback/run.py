"""Error feedback over a text: which chunks are held out, the pass, and what it found."""

from __future__ import annotations

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from calibration.feedback.fitting import Aim, FeedbackSettings, Fitted, Fitter, MatrixFit
from calibration.feedback.two_streams import OnFitted, TokenWeights, TwoStreams
from calibration.forward.saved_state import Keeper
from calibration.forward.settings import ForwardSettings, best_dtype
from calibration.forward.timings import Timings
from calibration.importance.imatrix import Imatrix
from calibration.importance.observers import ImatrixObserver, RouterLoad, RouterObserver
from calibration.text.chunks import Chunks
from quantize.sources.model_source import ModelSource
from quantize.telling import OnProgress, silent
from quantize.tensors import QType

__all__ = ["FedBack", "feed_back"]


@dataclass(frozen=True)
class FedBack:
    """What a pass of error feedback found: how each matrix was encoded, importances, the load of the router."""

    fits: tuple[MatrixFit, ...]
    imatrix: Imatrix
    load: RouterLoad
    timings: Timings


def feed_back(
    source: ModelSource,
    fit: Chunks,
    held_out: Chunks,
    qtypes: Mapping[str, QType],
    on_fitted: OnFitted,
    *,
    settings: FeedbackSettings | None = None,
    forward: ForwardSettings | None = None,
    token_weights: TokenWeights | None = None,
    jobs: int | None = None,
    keeper: Keeper | None = None,
    progress: OnProgress = silent,
) -> FedBack:
    """Encode the matrices of all layers so that their errors make up for each other.

    Args:
        source: the model.
        fit: the text that gives the moments.
        held_out: the text by which each matrix chooses; added to the moments afterwards.
        qtypes: types by name of tensor, those of the embedding included, which is not encoded here.
        on_fitted: is given each matrix of a layer that has a quantized type, with its blocks.
        settings: of the feedback.
        forward: see `calibration.forward.run.forward`; default bfloat16 products where the CPU has them.
        token_weights: how much each token counts at a matrix.
        jobs: threads that encode; by default one for each processor.
        keeper: keeps the state behind a layer; what `on_fitted` was given of it must outlive the run, too.
        progress: told the tokens that are through.

    Raises:
        ActivationError, CheckpointError, OutputError, TokenizerError: see `calibration.forward.run.forward`.
    """
    chunks = Chunks(fit.names, np.concatenate([fit.tokens, held_out.tokens]), fit.bos_id)
    importances, router = ImatrixObserver(chunks), RouterObserver(source.hparams)
    forward = forward or ForwardSettings(dtype=best_dtype())
    fits: list[MatrixFit] = []

    def take(aim: Aim, fitted: Fitted) -> None:
        fits.append(fitted.fit)
        on_fitted(aim, fitted)

    with ThreadPoolExecutor(jobs or os.cpu_count()) as workers:
        streams = TwoStreams(
            source,
            chunks.inputs,
            fit.n_token,
            qtypes,
            Fitter(settings or FeedbackSettings(), forward.device, workers),
            forward,
            importances=importances,
            router=router,
            on_fitted=take,
            token_weights=token_weights,
            progress=progress,
        )
        streams.run(keeper)
    return FedBack(tuple(fits), importances.imatrix, router.load, streams.timings)
