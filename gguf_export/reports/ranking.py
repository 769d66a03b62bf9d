"""Which files are worth their bytes: a verdict by a rule, the files that no other beats, and what beats the rest.

Pure figures in, words out: pages, tables and model cards take their verdicts from here. All files of one call were
measured on the same texts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from gguf_export.reports.figures import NOTHING

__all__ = ["BEATEN", "NOISE", "RULE", "Ranked", "beaten_by", "unbeaten", "verdict"]

STEPS = ((0.001, "as the original"), (0.005, "very good"), (0.02, "good"), (0.05, "fair"))
LAST = "last resort"

RULE = f"{', '.join(f'below {bound:g} “{word}”' for bound, word in STEPS)}, else “{LAST}”"
"""The rule of `verdict`, to be printed beside its words: on the mean KL divergence in nats."""

BEATEN = "X is no larger and has a lower mean KLD"
"""What “beaten by X” means."""

NOISE = 1e-7
"""Nats: mean KL divergences that differ by less differ by the rounding of float32."""


@dataclass(frozen=True)
class Ranked:
    """A file by what counts: `kld` is its mean KL divergence in nats on held-out text; NaN where it is not known."""

    name: str
    n_bytes: int
    kld: float


def verdict(kld: float) -> str:
    """One word on a file, by its mean KL divergence in nats on held-out text; "-" where that is not known."""
    if math.isnan(kld):
        return NOTHING
    return next((word for bound, word in STEPS if kld < bound), LAST)


def beaten_by(files: Sequence[Ranked]) -> list[str | None]:
    """For each file the name of the best one that is no larger and has a lower divergence; None where there is none."""
    best = []
    for file in files:
        better = [other for other in files if other.n_bytes <= file.n_bytes and other.kld < file.kld - NOISE]
        winner = min(better, key=lambda other: (other.kld, other.n_bytes), default=None)
        best.append(None if winner is None else winner.name)
    return best


def unbeaten(files: Sequence[Ranked]) -> list[Ranked]:
    """The files that no other beats (the Pareto line), the smallest first."""
    kept = [file for file, winner in zip(files, beaten_by(files), strict=True) if winner is None]
    return sorted(
        (file for file in kept if not math.isnan(file.kld)), key=lambda file: (file.n_bytes, file.kld)
    )
