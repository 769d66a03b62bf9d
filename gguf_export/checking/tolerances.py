"""What is right for each type, and how far some weights are from it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from gguf_export.checking.findings import Finding, info
from quantize.tensors import NUMPY_TYPES, Array, QType, Rows

__all__ = ["MOST", "TINY", "Habits", "Judgement", "Spots", "limit", "wild_limit"]

LIMITS: dict[QType, tuple[float, float, float]] = {
    QType.Q8_0: (0.001, 0.02, 0.02),
    QType.Q6_K: (0.04, 0.08, 0.8),
    QType.Q5_K: (0.05, 0.15, 0.9),
    QType.Q5_0: (0.06, 0.35, 0.9),
    QType.Q5_1: (0.04, 0.7, 0.9),
    QType.Q4_K: (0.15, 0.25, 0.9),
    QType.Q4_0: (0.06, 0.3, 0.9),
    QType.Q4_1: (0.13, 0.4, 0.9),
    QType.IQ4_NL: (0.2, 0.3, 0.9),
    QType.IQ4_XS: (0.2, 0.25, 0.9),
    QType.MXFP4: (0.07, 0.35, 0.35),
    QType.Q3_K: (0.12, 0.45, 0.9),
    QType.Q2_K: (0.36, 0.9, 1.3),
}
"""What a type explains: the relative squared error of a matrix, and the largest error of a weight relative to the
largest weight of its block, without and with importances (which may sacrifice a weight for its neighbours).

About twice what was found for normal, heavy-tailed, sparse, one-signed and badly scaled weights with even and with
log-normal importances.
"""

OTHERS = (0.7, 1.0, 1.5)  # of types of fewer bits, which can be decoded and not written here
FLOATS = 1e-5  # relative squared error of types that are not quantized
TINY = 1e-4  # an error that the steps of a half explain in blocks of very small weights
FEW = 0.001  # of the blocks: damage is local, and what is not local is the way in which somebody encodes
FEW_EXPERTS = 0.02  # of all matrices: the same of experts
MOST = 0.25  # of the blocks: where more are wrong, it is not damage


def limit(qtype: QType) -> float:
    """The relative squared error of a matrix that a type explains."""
    return FLOATS if qtype in NUMPY_TYPES else LIMITS.get(qtype, OTHERS)[0]


def wild_limit(qtype: QType, has_importances: bool) -> float:
    """The largest error of a weight, relative to the largest weight of its block, that a type explains."""
    return LIMITS.get(qtype, OTHERS)[2 if has_importances else 1]


@dataclass
class Spots:
    """Blocks that are not as they should be, of some rows of an expert or of all."""

    n: int = 0
    n_rows: int = 0  # in so many rows
    first: int = -1
    last: int = -1

    @classmethod
    def of(cls, flags: Array, rows: Rows) -> Spots:
        """The blocks of some rows that are flagged: [rows * blocks of a row]."""
        bad = np.flatnonzero(flags.reshape(rows[1] - rows[0], -1).any(axis=1)) + rows[0]
        if not len(bad):
            return cls()
        return cls(int(flags.sum()), len(bad), int(bad[0]), int(bad[-1]))

    def add(self, other: Spots) -> None:
        """Put those of another slab beside these."""
        if other.n:
            self.first = min(self.first, other.first) if self.n else other.first
            self.last = max(self.last, other.last)
            self.n, self.n_rows = self.n + other.n, self.n_rows + other.n_rows

    def are_local(self, n_blocks: int) -> bool:
        """Few, or side by side, as damage is and the habits of an encoder are not."""
        few = self.n <= max(4, FEW * n_blocks)
        return few or (self.n <= MOST * n_blocks and self.last - self.first < 2 * self.n_rows)


@dataclass
class Judgement:
    """How some rows of an expert compare, or all of them."""

    error: float = 0.0  # sum of squared differences
    energy: float = 0.0  # sum of squared weights
    n_blocks: int = 0
    wild: Spots = field(default_factory=Spots)  # an error that the type does not explain
    changed: Spots = field(default_factory=Spots)  # bytes that are not those of the encoding
    misplaced: Spots = field(default_factory=Spots)  # codes that are not the nearest to their weights

    def add(self, other: Judgement) -> None:
        """Put the rows of another slab beside these."""
        self.error += other.error
        self.energy += other.energy
        self.n_blocks += other.n_blocks
        self.wild.add(other.wild)
        self.changed.add(other.changed)
        self.misplaced.add(other.misplaced)

    @property
    def relative(self) -> float:
        """Squared error relative to the weights; infinite where there should be none and there are some."""
        return self.error / self.energy if self.energy else float("inf") if self.error else 0.0


@dataclass
class Habits:
    """Experts that are encoded in another way than here: damage where they are few, another program where many."""

    n_judged: int = 0
    others: int = 0  # everywhere in them
    suspected: list[Finding] = field(default_factory=list)  # in a few blocks

    def suspect(self, fault: Finding, experts: str) -> None:
        """Bytes differ in a few blocks of an expert, which errors and codes do not show."""
        self.suspected.append(replace(fault, message=experts + fault.message))

    def findings(self, path: Path) -> list[Finding]:
        """What it was."""
        many = len(self.suspected) > max(2, FEW_EXPERTS * self.n_judged) or self.others
        if not many:
            return self.suspected
        n = self.others + len(self.suspected)
        text = f"{n} of {self.n_judged} matrices are encoded by another program or build: compared by errors and codes"
        return [info(str(path), text)]
