"""By how much the weights of a file deviate from those of its checkpoint, and how damage is told from another encoder.

Damage is local: a few blocks, or blocks that lie side by side. What another encoder does otherwise occurs everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from gguf_export.checking.findings import Finding, info
from quantize.tensors import Array, Rows

__all__ = ["MAX_DAMAGED_SHARE", "BadBlocks", "Deviation", "EncoderDifferences"]

MAX_DAMAGED_SHARE = 0.25
"""Share of the blocks of a matrix that damage may reach; where more are wrong, the weights are others."""

LOCAL_SHARE = 0.001
"""Share of the blocks of a matrix up to which differences count as local wherever they lie."""
MIN_LOCAL = 4  # blocks: as many are local in a small matrix, too

FEW_MATRICES_SHARE = 0.02
"""Share of the matrices of a file up to which local differences count as damage."""
MIN_FEW_MATRICES = 2


@dataclass(frozen=True)
class BadBlocks:
    """Number and place of the blocks that fail one test, in some rows of a matrix."""

    n: int = 0
    n_rows: int = 0  # rows that hold any of them
    first: int = -1  # the first of these rows
    last: int = -1

    @classmethod
    def of(cls, flags: Array, rows: Rows) -> BadBlocks:
        """The blocks of rows `rows` that are flagged: bool [rows * blocks of a row]."""
        bad_rows = np.flatnonzero(flags.reshape(rows[1] - rows[0], -1).any(axis=1)) + rows[0]
        if not len(bad_rows):
            return cls()
        return cls(int(flags.sum()), len(bad_rows), int(bad_rows[0]), int(bad_rows[-1]))

    def __add__(self, other: BadBlocks) -> BadBlocks:
        """Add the bad blocks of other rows."""
        if not self.n or not other.n:
            return self if self.n else other
        return BadBlocks(
            self.n + other.n,
            self.n_rows + other.n_rows,
            min(self.first, other.first),
            max(self.last, other.last),
        )

    def are_local(self, n_blocks: int) -> bool:
        """Whether they are few of `n_blocks`, or lie side by side."""
        few = self.n <= max(MIN_LOCAL, LOCAL_SHARE * n_blocks)
        return few or (self.n <= MAX_DAMAGED_SHARE * n_blocks and self.last - self.first < 2 * self.n_rows)


@dataclass(frozen=True)
class Deviation:
    """How some rows of a matrix of the file compare with those of the checkpoint, or all its rows."""

    n_blocks: int = 0
    other_bytes: BadBlocks = field(default_factory=BadBlocks)  # bytes that the encoder here does not make
    squared_error: float = 0.0  # sum over weights
    squared_weights: float = 0.0  # sum over weights
    beyond_tolerance: BadBlocks = field(default_factory=BadBlocks)  # an error that the type does not explain
    not_nearest: BadBlocks = field(default_factory=BadBlocks)  # a code is not the nearest to its weight

    def __add__(self, other: Deviation) -> Deviation:
        """Add the deviation of other rows."""
        return Deviation(
            self.n_blocks + other.n_blocks,
            self.other_bytes + other.other_bytes,
            self.squared_error + other.squared_error,
            self.squared_weights + other.squared_weights,
            self.beyond_tolerance + other.beyond_tolerance,
            self.not_nearest + other.not_nearest,
        )

    @property
    def relative_error(self) -> float:
        """Squared error relative to the squared weights; infinite where the weights are zero and the error is not."""
        if self.squared_weights:
            return self.squared_error / self.squared_weights
        return float("inf") if self.squared_error else 0.0


@dataclass
class EncoderDifferences:
    """The matrices that differ in bytes alone from the encoder here: damaged where they are few, else made by another
    encoder."""

    n_matrices: int = 0  # compared so far
    n_everywhere: int = 0  # of them with differences all over the matrix
    local: list[Finding] = field(default_factory=list)  # one for each matrix with differences in a few blocks

    def findings(self, path: Path) -> list[Finding]:
        """The suspected faults, or one note where more matrices differ than damage would explain: another encoder."""
        are_few = len(self.local) <= max(MIN_FEW_MATRICES, FEW_MATRICES_SHARE * self.n_matrices)
        if are_few and not self.n_everywhere:
            return self.local
        n = self.n_everywhere + len(self.local)
        text = (
            f"{n} of {self.n_matrices} matrices are encoded by another program or build: "
            "compared by errors and codes"
        )
        return [info(str(path), text)]
