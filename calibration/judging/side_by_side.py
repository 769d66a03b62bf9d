"""Several models beside a base in one pass over the text: a layer of each is decoded, used on all chunks and dropped.

Logits are compared chunk by chunk, so no file of logits is needed. Protocol and formulas are llama-perplexity's, see
`kld`; how far the routers agree is measured beside them, see `router_agreement`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from calibration.forward.int8 import InputRounding, round_f16
from calibration.forward.run import forward
from calibration.forward.saved_state import Keeper
from calibration.forward.settings import ForwardSettings
from calibration.forward.streams import Stream
from calibration.forward.timings import Timings
from calibration.judging.kld import Scores, Statistics, base_probs, log_probs, score, summarize
from calibration.judging.logits_file import LogitsFile
from calibration.judging.model import Model, refuse_other_model
from calibration.judging.perplexity import Estimate, first_scored, perplexity
from calibration.judging.router_agreement import RouterAgreement, RouterComparer
from calibration.text.chunks import Chunks
from quantize.recipes.left_alone import converted_type
from quantize.telling import OnProgress, Progress, silent

__all__ = [
    "Activations",
    "Base",
    "Comparison",
    "Model",
    "OnText",
    "RouterAgreement",
    "Scored",
    "compare",
    "comparison_of",
    "scored",
    "starts_of",
]

Activations = Literal["exact", "int8"]

Base = Model | LogitsFile
"""The reference for models: a model of the same pass (`kind` "model"), or its logits from a file ("logits")."""


@dataclass(frozen=True)
class OnText:
    """How one model did on one text: figures, the scores they summarise, and the router (None: no experts)."""

    statistics: Statistics
    scores: Scores
    router: RouterAgreement | None


@dataclass(frozen=True)
class Comparison:
    """The result of `compare`: `results[m][t]` of model m on text t, and the base's perplexity on each text."""

    base: Base
    models: tuple[Model, ...]
    texts: tuple[Chunks, ...]
    activations: Activations
    base_ppl: tuple[Estimate, ...]
    results: tuple[tuple[OnText, ...], ...]
    timings: Timings

    def text_name(self, index: int) -> str:
        """The name of a text."""
        return " + ".join(self.texts[index].names)


def compare(
    base: Base,
    models: Sequence[Model],
    texts: Sequence[Chunks],
    *,
    activations: Activations = "exact",
    settings: ForwardSettings | None = None,
    keeper: Keeper | None = None,
    progress: OnProgress = silent,
) -> Comparison:
    """Measure models against a base on texts, all in one pass: every source is read once, however long the texts are.

    Args:
        base: a model, or a file of logits that llama-perplexity wrote (then there is one text, its own, and nothing is
            said of routers).
        models: at least one.
        texts: chunks of the same number of tokens.
        activations: "exact" judges the weights alone; "int8" rounds the input of each product as llama.cpp's CPU
            kernels do (see `int8`), so that the figures are those that llama-perplexity finds.
        settings: see `forward`; default float32, since differences are small.
        keeper: see `forward`; a pass that goes on behind the last layer compares all chunks anew.
        progress: told the tokens that are through, then the chunks that are compared.

    Raises:
        GGUFError: a model is not the base's kind: other dimensions or tensors.
        LogitsError: the base's file is of another text, context or vocabulary.
        ActivationError, CheckpointError, TokenizerError: see `forward`.
    """
    found = scored(
        base, models, texts, activations=activations, settings=settings, keeper=keeper, progress=progress
    )
    return comparison_of(base, models, texts, activations, found)


@dataclass(frozen=True)
class Scored:
    """What a pass found: `scores[m][c]` of model m on chunk c, and how often the routers agreed (None: no experts)."""

    scores: Sequence[Sequence[Scores]]
    routers: RouterComparer | None
    timings: Timings


def scored(
    base: Base,
    models: Sequence[Model],
    texts: Sequence[Chunks],
    *,
    place: tuple[int, int] | None = None,
    activations: Activations = "exact",
    settings: ForwardSettings | None = None,
    keeper: Keeper | None = None,
    progress: OnProgress = silent,
) -> Scored:
    """The pass of `compare`, over all chunks of the texts, or over those of a share of them.

    Args:
        base, models, texts, activations, settings, keeper, progress: see `compare`.
        place: the first chunk of the share and the one behind its last, counted through all texts.

    Raises:
        MoeGgufError: see `compare`.
    """
    all_chunks = replace(texts[0], tokens=np.concatenate([text.tokens for text in texts]))
    _refuse_incomparable(base, models, all_chunks)
    start, stop = place or (0, all_chunks.n_chunk)
    in_pass = [*([base] if base.kind == "model" else []), *models]
    comparer = _LogitsComparer(base, all_chunks.part(start, stop), start, progress)
    hparams = in_pass[0].source.hparams
    routers = None
    if base.kind == "model" and hparams.n_expert:
        starts = np.clip(starts_of(texts), start, stop) - start
        routers = RouterComparer(len(in_pass), hparams.n_layer, starts * all_chunks.n_ctx)
    rounding, round_cache = (
        (InputRounding(partial(converted_type, arch=hparams.arch)), round_f16)
        if activations == "int8"
        else (None, None)
    )
    timings = forward(
        [Stream(model.source, rounding, round_cache, model.name) for model in in_pass],
        np.concatenate([text.inputs for text in texts])[start:stop],
        settings=settings,
        observers=[routers] if routers is not None else [],
        on_logits=comparer,
        first_logit=first_scored(all_chunks.n_ctx),
        keeper=keeper,
        progress=progress,
    )
    return Scored(comparer.scores, routers, timings)


def starts_of(texts: Sequence[Chunks]) -> npt.NDArray[np.int64]:
    """The first chunk of each text, counted through all of them, and behind the last one their number."""
    return np.cumsum([0] + [text.n_chunk for text in texts])


def comparison_of(
    base: Base, models: Sequence[Model], texts: Sequence[Chunks], activations: Activations, found: Scored
) -> Comparison:
    """The figures of each model on each text, out of what was found of all chunks."""
    starts = starts_of(texts)
    results = []
    for index, by_chunk in enumerate(found.scores, 1 if base.kind == "model" else 0):
        on_texts = []
        for text in range(len(texts)):
            scores = Scores.joined(by_chunk[starts[text] : starts[text + 1]])
            agreement = found.routers.agreement(index, text) if found.routers is not None else None
            on_texts.append(OnText(summarize(scores), scores, agreement))
        results.append(tuple(on_texts))
    return Comparison(
        base,
        tuple(models),
        tuple(texts),
        activations,
        tuple(perplexity(on_text.scores.nll_base) for on_text in results[0]),
        tuple(results),
        found.timings,
    )


def _refuse_incomparable(base: Base, models: Sequence[Model], chunks: Chunks) -> None:
    if base.kind == "logits":
        base.refuse_other_text(chunks)
        for model in models:
            base.refuse_other_size(model.name, model.source.hparams.n_vocab)
    first = base if base.kind == "model" else models[0]
    for model in models:
        refuse_other_model(first, model)


class _LogitsComparer:
    """The callback `on_logits` of the pass: the scores of each chunk, `scores[model][chunk]`.

    The first of the chunks is chunk `first` of the base's file of logits.
    """

    def __init__(self, base: Base, chunks: Chunks, first: int, progress: OnProgress) -> None:
        self._base = base
        self._chunks, self._first = chunks, first
        self._progress = progress
        self.scores: list[list[Scores]] = []

    def __call__(self, chunk: int, logits: Sequence[Tensor]) -> None:
        """Score the logits [n_ctx - first, V] of a chunk from every model of the pass."""
        first = first_scored(self._chunks.n_ctx)
        scored = [of_model[:-1] for of_model in logits]  # the last position has no target
        if self._base.kind == "model":
            log = log_probs(scored.pop(0))
        else:
            log = torch.from_numpy(self._base.log_probs(self._first + chunk)).to(scored[0].device)
        base = base_probs(log)
        targets = torch.from_numpy(self._chunks.tokens[chunk, first + 1 :]).long().to(log.device)
        for index, of_model in enumerate(scored):
            if index == len(self.scores):
                self.scores.append([])
            self.scores[index].append(score(of_model, base, targets))
        self._progress(Progress("comparing", chunk + 1, self._chunks.n_chunk, unit="chunks"))
