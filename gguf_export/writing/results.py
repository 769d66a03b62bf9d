"""The figures of an export: what it would write, and what it has written."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from gguf_export.writing.job import Output
from quantize.recipes.layout import Plan
from quantize.telling import Remark

if TYPE_CHECKING:  # it imports torch, and an export without text needs no torch
    from calibration.feedback.fitting import MatrixFit
    from calibration.importance.observers import Collected

__all__ = [
    "ExportPlan",
    "ExportResult",
    "FeedbackFigures",
    "FileFigures",
    "PartFigures",
    "Seconds",
    "TensorFigures",
    "file_figures",
]


@dataclass
class Seconds:
    """Where the time of an export went; `read`, `encode` and `write` are summed over the threads."""

    wall: float = 0.0
    read: float = 0.0
    encode: float = 0.0
    write: float = 0.0

    def add(self, other: Seconds) -> None:
        """Add the times of one slab."""
        self.read += other.read
        self.encode += other.encode
        self.write += other.write


@dataclass(frozen=True)
class TensorFigures:
    """One tensor of a file: its shape in NumPy's order, its type, its bytes, and where they begin behind the header."""

    name: str
    shape: tuple[int, ...]
    qtype: str
    n_bytes: int
    offset: int
    fallback_from: str | None = None
    """The type that was meant, where rows do not divide into its blocks."""


@dataclass(frozen=True)
class PartFigures:
    """One file on the disk: its size in bytes and its tensors in their order."""

    path: Path
    n_bytes: int
    tensors: tuple[TensorFigures, ...]


@dataclass(frozen=True)
class FileFigures:
    """One file of an export: its type, its bits per weight, and its parts: itself alone, where it is not split.

    `path` is that of the first part, by which llama.cpp and all verbs here open a file that is split.
    """

    path: Path
    ftype: str
    bpw: float
    parts: tuple[PartFigures, ...]

    @property
    def n_bytes(self) -> int:
        """Size in bytes, of all parts."""
        return sum(part.n_bytes for part in self.parts)

    @property
    def tensors(self) -> tuple[TensorFigures, ...]:
        """All tensors in their order."""
        return tuple(tensor for part in self.parts for tensor in part.tensors)


@dataclass(frozen=True)
class FeedbackFigures:
    """What error feedback did for a file: how many matrices it encoded, and how the file fares on held-out text.

    `kld` and `plain_kld` are mean KL divergences in nats per token, of the file and of the plain encoding in the same
    types, on `n_judged` chunks that have chosen nothing.
    """

    n_matrix: int
    n_fed_back: int
    starved: tuple[tuple[str, int, int], ...]
    """(tensor, expert, tokens) of the matrices that too few tokens reached; they are encoded plainly."""
    n_plain_better: int
    """Matrices whose plain encoding was better on held-out tokens, and is kept."""
    n_judged: int
    kld: float
    plain_kld: float

    @property
    def ratio(self) -> float:
        """The KL divergence relative to that of the plain encoding; 1 where both are 0."""
        return self.kld / self.plain_kld if self.plain_kld > 0 else 1.0 if self.kld <= 0 else math.inf

    @property
    def is_worse(self) -> bool:
        """Whether the plain encoding is better, which is then what was written."""
        return not self.ratio <= 1  # NaN is no good, either

    @property
    def in_words(self) -> str:
        """How the file fares."""
        return (
            f"mean KL divergence on {self.n_judged} chunks that were held out: {self.kld:.6f}, {self.ratio:.3f} of the "
            "plain encoding's"
        )

    @classmethod
    def of(cls, fits: Sequence[MatrixFit], n_judged: int, kld: float, plain_kld: float) -> FeedbackFigures:
        """The figures of a pass."""
        starved = tuple((fit.name, fit.xid, fit.n_token) for fit in fits if fit.reason == "few tokens")
        return cls(
            n_matrix=len(fits),
            n_fed_back=sum(fit.damping is not None for fit in fits),
            starved=starved,
            n_plain_better=sum(fit.reason == "held out" for fit in fits),
            n_judged=n_judged,
            kld=kld,
            plain_kld=plain_kld,
        )


@dataclass(frozen=True)
class ExportPlan:
    """What an export would write, and what a careful reader wants to know of it."""

    files: tuple[FileFigures, ...]
    remarks: tuple[Remark, ...]
    imatrix: tuple[Path, int] | None = None
    """The file that keeps the importances that a text gives, and its size in bytes."""

    seconds: float | None = field(default=None, compare=False)
    """An estimate of reading and encoding, without a text's way through the model; None where there is none."""


@dataclass(frozen=True)
class ExportResult:
    """What an export has written, the bytes of the checkpoint that it read, and its seconds.

    `calibration` is what the text gave, where the export calibrated on the way; `imatrix` is the file that keeps its
    importances. `standing` are the files that were there before, and are left: those that are what would be made, or
    all that exist where these are skipped.
    """

    files: tuple[FileFigures, ...]
    bytes_read: int
    seconds: Seconds = field(compare=False)
    calibration: Collected | None = field(default=None, compare=False)
    feedback: FeedbackFigures | None = None
    standing: tuple[Path, ...] = ()
    imatrix: Path | None = None


def file_figures(output: Output) -> FileFigures:
    """The figures of a file that is planned or written."""
    parts = tuple(PartFigures(file.path, file.n_bytes, _tensors(file.plan)) for file in output.files)
    return FileFigures(parts[0].path, output.plan.ftype.name, output.plan.bpw, parts)


def _tensors(plan: Plan) -> tuple[TensorFigures, ...]:
    return tuple(
        TensorFigures(
            planned.name,
            planned.spec.shape,
            planned.qtype.name,
            planned.n_bytes,
            planned.offset,
            None if planned.fallback_from is None else planned.fallback_from.name,
        )
        for planned in plan.tensors
    )
