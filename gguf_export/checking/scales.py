"""Whether the numbers that a GGUF file stores are numbers: what `--check-tensors` of llama.cpp asks.

A block's scales are halves; one that is NaN or infinite spoils all weights of the block
(`ggml_validate_row_data`, ggml/src/ggml-quants.c).
"""

from __future__ import annotations

import numpy as np
from gguf.constants import GGML_QUANT_SIZES

from quantize.codec import first_non_finite
from quantize.tensors import NUMPY_TYPES, Array, QType

__all__ = ["bad_row", "is_known"]

HALVES: dict[QType, tuple[int, ...]] = {
    **dict.fromkeys((QType.Q4_0, QType.Q5_0, QType.Q8_0, QType.IQ4_NL, QType.IQ4_XS), (0,)),
    **dict.fromkeys((QType.IQ1_S, QType.IQ2_XXS, QType.IQ2_XS, QType.IQ2_S), (0,)),
    **dict.fromkeys((QType.IQ3_XXS, QType.IQ3_S), (0,)),
    **dict.fromkeys((QType.Q4_1, QType.Q5_1, QType.Q4_K, QType.Q5_K), (0, 2)),
    QType.Q2_K: (80, 82),
    QType.Q3_K: (108,),
    QType.Q6_K: (208,),
    QType.TQ1_0: (52,),
    QType.TQ2_0: (64,),
}
"""Where the scales of a block are (ggml/src/ggml-common.h), bytes from its start."""

EXPONENT = 0x7C00  # of a half, all set in infinities and NaNs
E8M0_NAN = 255


def is_known(qtype: QType) -> bool:
    """Whether `bad_row` can tell."""
    return qtype in HALVES or qtype in NUMPY_TYPES or qtype is QType.MXFP4


def bad_row(blocks: Array, qtype: QType) -> int | None:
    """The first row with a number that is not finite; blocks as stored, uint8 [n_rows, row bytes]."""
    n_rows, row_bytes = blocks.shape
    if qtype in NUMPY_TYPES:
        found = first_non_finite(blocks.view(NUMPY_TYPES[qtype]))
        return None if found is None else found // (row_bytes // NUMPY_TYPES[qtype].itemsize)
    by_block = blocks.reshape(-1, GGML_QUANT_SIZES[qtype][1])
    bad = np.zeros(len(by_block), bool)
    if qtype is QType.MXFP4:
        bad |= by_block[:, 0] == E8M0_NAN
    for place in HALVES.get(qtype, ()):
        half = np.ascontiguousarray(by_block[:, place : place + 2]).view("<u2")[:, 0]
        bad |= half & EXPONENT == EXPONENT
    return int(bad.argmax()) * n_rows // len(by_block) if bad.any() else None
