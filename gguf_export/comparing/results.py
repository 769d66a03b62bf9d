"""The figures of a comparison as plain data: what is written, read back, merged and drawn; no model is behind them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

__all__ = [
    "DECADES",
    "FIGURES",
    "BaseFacts",
    "Measured",
    "ModelResult",
    "OnText",
    "Results",
    "Speed",
    "SpeedTest",
    "TextFacts",
    "by_size",
    "mean_of",
]

DECADES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Bounds of KLD in nats: `OnText.shares` has one share below each, and one above the last."""

WITH_ERROR = (
    "ppl",
    "ppl_base",
    "ln_ratio",
    "ppl_ratio",
    "ppl_difference",
    "kld",
    "mean_dp",
    "rms_dp",
    "same_top",
)
_LOW, _HIGH = (0.001, 0.01, 0.05, 0.1, 0.25), (0.75, 0.9, 0.95, 0.99, 0.999)

FIGURES = (
    "n_target",
    *(key for name in WITH_ERROR for key in (name, f"{name}_error")),
    *("correlation", "kld_min", "kld_median", "kld_max"),
    *(f"kld_q{fraction:g}" for fraction in (*_LOW, *_HIGH)),
    *(f"dp_q{fraction:g}" for fraction in (*_LOW, 0.5, *_HIGH)),
)
"""The keys of `OnText.figures`, as `calibration.judging.kld` defines them: KLD in nats, shares as fractions of 1."""


class Measured(NamedTuple):
    """A figure with its standard error."""

    value: float
    error: float


@dataclass(frozen=True)
class OnText:
    """How one model did on one text.

    figures: by the names in `FIGURES`; NaN where there is no number.
    shares: of the scored tokens, by decade of KLD (`DECADES`).
    same_experts, router_kld: by layer, NaN in a layer without a router; empty where nothing is known of routers.
    """

    figures: Mapping[str, float]
    shares: tuple[float, ...]
    same_experts: tuple[float, ...] = ()
    router_kld: tuple[float, ...] = ()

    def measured(self, name: str) -> Measured:
        """One of the figures that have an error."""
        return Measured(self.figures[name], self.figures[f"{name}_error"])

    @property
    def mean_same_experts(self) -> float:
        """Share of tokens that go to the base's experts, mean over the layers; NaN where nothing is known."""
        return _known_mean(self.same_experts)

    @property
    def mean_router_kld(self) -> float:
        """Mean KL divergence of the routers in nats, mean over the layers; NaN where nothing is known."""
        return _known_mean(self.router_kld)


@dataclass(frozen=True)
class BaseFacts:
    """What the models are held against; a file of logits has neither size nor bits."""

    name: str
    n_bytes: int | None
    bpw: float | None


@dataclass(frozen=True)
class TextFacts:
    """A text: its name and chunks, the SHA-256 of its tokens, and the base's perplexity on it."""

    name: str
    n_chunk: int
    n_ctx: int
    tokens_sha256: str
    base_ppl: Measured

    @property
    def n_token(self) -> int:
        """Tokens of all chunks."""
        return self.n_chunk * self.n_ctx


class Speed(NamedTuple):
    """Tokens per second: `pp` of a prompt that is processed, `tg` of text that is generated, as in llama-bench."""

    pp: float
    tg: float


@dataclass(frozen=True)
class SpeedTest:
    """How speeds were measured: the program and its version, threads, tokens of the prompt and of what follows it."""

    program: str
    n_thread: int
    n_prompt: int
    n_generated: int


@dataclass(frozen=True)
class ModelResult:
    """A model: its names, what it costs, and how it did on each text.

    label: tells it from the others, and is short; `is_named` where a person chose it.
    name: that of its file, with as many folders as tell it from the others; or that of a round trip.
    importances: what a round trip was encoded with, in words; empty for a file.
    imatrix: the same as data, None without one.
    """

    label: str
    name: str
    is_named: bool
    is_file: bool
    n_bytes: int
    bpw: float
    predicted_kld: float | None
    importances: str
    imatrix: Mapping[str, Any] | None
    texts: tuple[OnText, ...]
    speed: Speed | None = None

    def mean(self, name: str) -> Measured:
        """A figure over all texts, see `mean_of`."""
        return mean_of([text.measured(name) for text in self.texts])

    @property
    def mean_same_experts(self) -> float:
        """Share of tokens that go to the base's experts, mean over texts and layers; NaN where nothing is known."""
        return _known_mean([text.mean_same_experts for text in self.texts])


@dataclass(frozen=True)
class Results:
    """A comparison, its models the largest first.

    hidden: type of the hidden states between layers, "f32" or "bf16".
    versions: of the programs that measured, by name.
    timings: seconds by kind of work, see `calibration.forward.timings`; None where several comparisons were merged.
    """

    base: BaseFacts
    activations: str
    hidden: str
    versions: Mapping[str, str]
    texts: tuple[TextFacts, ...]
    models: tuple[ModelResult, ...]
    timings: Mapping[str, float] | None = None
    speed_test: SpeedTest | None = None

    @property
    def labels(self) -> list[str]:
        """The short names of the models."""
        return [model.label for model in self.models]


def by_size(models: Sequence[ModelResult]) -> tuple[ModelResult, ...]:
    """Models in the order of all tables: the largest first, and of equal size the better first."""
    return tuple(sorted(models, key=lambda model: (-model.n_bytes, model.mean("kld").value, model.label)))


def mean_of(figures: Sequence[Measured]) -> Measured:
    """The mean of figures on several texts, each text counting the same, with the error of independent figures."""
    n = len(figures)
    value = math.fsum(figure.value for figure in figures) / n
    return Measured(value, math.sqrt(math.fsum(figure.error**2 for figure in figures)) / n)


def _known_mean(values: Sequence[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return math.fsum(known) / len(known) if known else math.nan
