"""Tolerances per block type: how far the weights of a file may be from those that they were made from."""

from __future__ import annotations

from typing import NamedTuple

from quantize.tensors import NUMPY_TYPES, QType

__all__ = ["MAX_MOVED", "TINY_ERROR", "Tolerance", "tolerance"]


class Tolerance(NamedTuple):
    """The largest errors that the rounding of a type explains; all are ratios."""

    matrix: float
    """Squared error of a matrix, relative to its squared weights."""
    weight: float
    """Error of a weight, relative to the largest weight of its block, where there were no importances."""
    weight_with_importances: float
    """The same with importances, which may sacrifice a weight for its neighbours."""


TOLERANCES: dict[QType, Tolerance] = {
    QType.Q8_0: Tolerance(0.001, 0.02, 0.02),
    QType.Q6_K: Tolerance(0.04, 0.08, 0.8),
    QType.Q5_K: Tolerance(0.05, 0.15, 0.9),
    QType.Q5_0: Tolerance(0.06, 0.35, 0.9),
    QType.Q5_1: Tolerance(0.04, 0.7, 0.9),
    QType.Q4_K: Tolerance(0.15, 0.25, 0.9),
    QType.Q4_0: Tolerance(0.06, 0.3, 0.9),
    QType.Q4_1: Tolerance(0.13, 0.4, 0.9),
    QType.IQ4_NL: Tolerance(0.2, 0.3, 0.9),
    QType.IQ4_XS: Tolerance(0.2, 0.25, 0.9),
    QType.MXFP4: Tolerance(0.07, 0.35, 0.35),
    QType.Q3_K: Tolerance(0.12, 0.45, 0.9),
    QType.Q2_K: Tolerance(0.36, 0.9, 1.3),
    QType.NVFP4: Tolerance(0.05, 1.1, 1.1),
    QType.IQ3_XXS: Tolerance(0.9, 1.1, 2.0),
    QType.IQ3_S: Tolerance(1.1, 2.5, 2.5),
}
"""About twice the largest errors that were measured for normal, heavy-tailed, sparse, one-signed and badly scaled
weights, with even and with log-normal importances. NVFP4's scales lose blocks of small weights, and IQ3_S what stands
beside sub-blocks of zeros."""

FEWER_BITS = Tolerance(1.2, 1.5, 2.5)
"""For IQ1 and IQ2, ternary types, Q2_0 and Q1_0, of which errors up to 1.12 of a matrix, and 1.7 of a weight, were
measured: less is not told from weights that are their own."""

MAX_MOVED = 1.2
"""The largest squared error of a matrix that error feedback has moved, relative to its squared weights: 0.5 was
measured where little text had moved it far; foreign weights are off by 2."""

NOT_QUANTIZED = Tolerance(1e-5, 1e-5, 1e-5)
"""For F32, F16 and BF16, of which BF16 rounds most coarsely."""

TINY_ERROR = 1e-4
"""An error of a weight that the steps of a half-precision scale explain in blocks of very small weights."""


def tolerance(qtype: QType) -> Tolerance:
    """The tolerance of a type."""
    return NOT_QUANTIZED if qtype in NUMPY_TYPES else TOLERANCES.get(qtype, FEWER_BITS)
