"""How long work reports itself: a callback, so that the library never prints."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """A moment of a stage: `done` of `total` units of the stage called `stage` are complete."""

    stage: str  # what is being done, as a person would say it: "encoding", "compiling kernels"
    done: int
    total: int
    unit: str = "B"  # "B" for bytes, else a word in the plural: "tokens", "layers"


Report = Callable[[Progress], None]


def silent(_progress: Progress) -> None:
    """Report to nobody."""
