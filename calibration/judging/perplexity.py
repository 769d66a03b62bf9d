"""Perplexity, with llama-perplexity's protocol: the second half of each chunk is scored, given the first."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from calibration.forward.run import forward
from calibration.forward.settings import ForwardSettings
from calibration.forward.streams import Stream
from calibration.text.chunks import Chunks
from quantize.sources.model_source import ModelSource
from quantize.telling import OnProgress, silent

__all__ = ["Estimate", "NllScores", "first_scored", "measure_perplexity", "nll_of_targets", "perplexity"]


@dataclass(frozen=True)
class Estimate:
    """A mean over `n` targets with its standard error."""

    value: float
    error: float
    n: int


def first_scored(n_ctx: int) -> int:
    """The first position of a chunk that is scored, with the token behind it as its target.

    `first` in llama.cpp's tools/perplexity/perplexity.cpp:perplexity; the last position has no target.
    """
    return n_ctx // 2


def nll_of_targets(logits: Tensor, targets: Tensor) -> Tensor:
    """-ln p(target): logits f32 [n, V] and targets [n] -> f64 [n] (perplexity.cpp:log_softmax).

    The exponentials are float32, their sum is float64, as in llama.cpp.
    """
    shifted = logits - logits.max(dim=-1, keepdim=True).values
    log_sum = shifted.exp().sum(dim=-1, dtype=torch.float64).log()
    return log_sum - shifted.gather(-1, targets[:, None])[:, 0].double()


def perplexity(nll: npt.ArrayLike) -> Estimate:
    """exp(mean nll) with the error ppl * sqrt((mean(nll^2) - mean(nll)^2) / (n - 1)) that llama-perplexity prints.

    Of one target the error is not known; it is 0, as in `kld.mean`.
    """
    values = np.asarray(nll, np.float64)
    n = values.size
    mean = float(values.mean())
    spread = max(0.0, float(np.square(values).mean()) - mean * mean)
    ppl = math.exp(mean)
    return Estimate(ppl, ppl * math.sqrt(spread / (n - 1)) if n > 1 else 0.0, n)


@dataclass
class NllScores:
    """The nll f64 of every scored target of each stream: `streams[index]` is a list of arrays, one per chunk."""

    chunks: Chunks
    streams: list[list[npt.NDArray[np.float64]]] = field(default_factory=list)

    def __call__(self, chunk: int, logits: Sequence[Tensor]) -> None:
        """Take the logits [n_ctx - first, V] of a chunk from every stream (`forward`'s `on_logits`)."""
        first = first_scored(self.chunks.n_ctx)
        targets = torch.from_numpy(self.chunks.tokens[chunk, first + 1 :].astype(np.int64))
        for index, of_stream in enumerate(logits):
            if index == len(self.streams):
                self.streams.append([])
            nll = nll_of_targets(of_stream[:-1], targets.to(of_stream.device))
            self.streams[index].append(nll.cpu().numpy())


def measure_perplexity(
    source: ModelSource,
    chunks: Chunks,
    *,
    settings: ForwardSettings | None = None,
    progress: OnProgress = silent,
) -> Estimate:
    """Perplexity of a model on chunks of text.

    Raises:
        ActivationError, CheckpointError, TokenizerError: see `forward`.
    """
    scores = NllScores(chunks)
    forward(
        [Stream(source)],
        chunks.inputs,
        settings=settings,
        on_logits=scores,
        first_logit=first_scored(chunks.n_ctx),
        progress=progress,
    )
    return perplexity(np.concatenate(scores.streams[0]))
