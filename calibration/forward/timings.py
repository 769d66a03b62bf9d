"""The time that each stage of a forward pass takes."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from quantize.tracing import span

__all__ = ["Stage", "Timings", "summed"]


class Stage(Enum):
    """The kinds of work; the values are their names in the states on disk."""

    READING = "reading"  # from disk; encoding, too, where the source is a round trip
    DECODING = "decoding"  # blocks, or narrow floats, to the type of the products
    PRODUCTS = "products"  # matrix products with weights
    ATTENTION = "attention"  # without its products with weights
    OBSERVING = "observing"
    WEIGHTS = "weights"  # in `on_weights`
    COMPARING = "comparing"  # in `on_logits`


@dataclass
class Timings:
    """Seconds of wall time, in `total` and by stage, and the tokens of the text.

    A GPU works on after a call returns: there `total` is true, and the stages say where the CPU waited for it.
    """

    n_token: int = 0
    total: float = 0.0
    seconds: dict[Stage, float] = field(default_factory=lambda: dict.fromkeys(Stage, 0.0))
    _within: float = 0.0  # seconds that stages within the current one have taken

    @property
    def share_of_products(self) -> float:
        """Share of the time of the forward pass itself that was spent in matrix products."""
        own = self.total - self.seconds[Stage.WEIGHTS] - self.seconds[Stage.COMPARING]
        return self.seconds[Stage.PRODUCTS] / own if own > 0 else 0.0

    @property
    def tokens_per_second(self) -> float:
        """Tokens of the text by second of the whole pass; 0 where it took no time that a clock shows."""
        return self.n_token / self.total if self.total > 0 else 0.0

    @contextmanager
    def measure(self, stage: Stage) -> Iterator[None]:
        """Add the duration of the block to a stage, less the time that is measured for other stages within it."""
        before, self._within = self._within, 0.0
        start = time.perf_counter()
        try:
            with span(stage.value):
                yield
        finally:
            spent = time.perf_counter() - start
            self.seconds[stage] += spent - self._within
            self._within = before + spent

    def as_dict(self) -> dict[str, float]:
        """The figures by name, as the states on disk hold them."""
        return {"n_token": self.n_token, "total": self.total} | {
            stage.value: seconds for stage, seconds in self.seconds.items()
        }

    def restore(self, figures: Mapping[str, Any]) -> None:
        """Take the figures of an earlier run (see `as_dict`).

        Raises:
            KeyError, TypeError, ValueError: one is missing or no number; then nothing has changed.
        """
        seconds = {stage: float(figures[stage.value]) for stage in Stage}
        self.n_token, self.total = int(figures["n_token"]), float(figures["total"])
        self.seconds = seconds


def summed(passes: Sequence[Timings]) -> Timings:
    """Passes side by side as one: tokens and the seconds of stages are sums, the total is that of the longest."""
    seconds = {stage: sum(each.seconds[stage] for each in passes) for stage in Stage}
    return Timings(sum(each.n_token for each in passes), max(each.total for each in passes), seconds)
