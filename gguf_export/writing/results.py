"""The figures of an export: what it would write, and what it has written."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from gguf_export.writing.job import OutputFile
from quantize.telling import Remark

if TYPE_CHECKING:  # it imports torch, and an export without text needs no torch
    from calibration.importance.observers import Collected

__all__ = ["ExportPlan", "ExportResult", "FileFigures", "Seconds", "TensorFigures", "file_figures"]


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


@dataclass(frozen=True)
class FileFigures:
    """One file of an export: its type, its size in bytes, its bits per weight and its tensors in their order."""

    path: Path
    ftype: str
    n_bytes: int
    bpw: float
    tensors: tuple[TensorFigures, ...]


@dataclass(frozen=True)
class ExportPlan:
    """What an export would write, and what a careful reader wants to know of it."""

    files: tuple[FileFigures, ...]
    remarks: tuple[Remark, ...]


@dataclass(frozen=True)
class ExportResult:
    """What an export has written, the bytes of the checkpoint that it read, and its seconds.

    `calibration` is what the text gave, where the export calibrated on the way.
    """

    files: tuple[FileFigures, ...]
    bytes_read: int
    seconds: Seconds = field(compare=False)
    calibration: Collected | None = field(default=None, compare=False)


def file_figures(file: OutputFile) -> FileFigures:
    """The figures of a file that is planned or written."""
    tensors = tuple(
        TensorFigures(planned.name, planned.spec.shape, planned.qtype.name, planned.n_bytes, planned.offset)
        for planned in file.plan.tensors
    )
    return FileFigures(file.path, file.plan.ftype.name, file.n_bytes, file.plan.bpw, tensors)
