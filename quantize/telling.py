"""How long work tells of itself, by callbacks: the library never prints."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from quantize.exceptions import one_line


@dataclass(frozen=True)
class Progress:
    """A moment of a stage: `done` of `total` units of the stage called `stage` are complete."""

    stage: str  # the work, as a person would call it: "encoding", "compiling kernels"
    done: int
    total: int
    unit: str = "B"  # "B" for bytes, else a word in the plural: "tokens", "layers"


OnProgress = Callable[[Progress], None]


def silent(_progress: Progress) -> None:
    """Let progress go unseen."""


@dataclass(frozen=True)
class Remark:
    """A fact worth knowing that stops nothing: a fallback that was taken, a key that was left out.

    The fields are those of an error (`quantize.exceptions.MoeGgufError`); `place` may be empty.
    """

    place: str
    message: str
    remedy: str = ""
    setting: str = ""

    def line(self, spell: Callable[[str], str] = str) -> str:
        """The remark in one line; `spell` writes the name of a setting."""
        return one_line(self.place, self.message, self.remedy, self.setting, spell)

    def __str__(self) -> str:
        return self.line()


class RemarkWarning(UserWarning):
    """A remark by way of Python's `warnings`, from a place to which no `Note` leads."""

    def __init__(self, remark: Remark) -> None:
        super().__init__(str(remark))
        self.remark = remark


Note = Callable[[Remark], None]
"""Receives remarks, one by one."""


def discard(_remark: Remark) -> None:
    """Let a remark go unheard."""
