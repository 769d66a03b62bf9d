"""Whether the numbers that a GGUF file stores are finite: what `--check-tensors` of llama.cpp asks.

A block's scales are halves; one that is NaN or infinite spoils all weights of the block
(`ggml_validate_row_data`, ggml/src/ggml-quants.c).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from gguf_export.checking.findings import Finding, error, info, warning
from quantize.codec import first_non_finite
from quantize.sources.gguf_file import GGUFFile
from quantize.telling import OnProgress, Progress, silent
from quantize.tensors import NUMPY_TYPES, Array, QType, TensorSpec

__all__ = ["bad_row", "can_check", "check_numbers"]

HALVES: dict[QType, tuple[int, ...]] = {
    **dict.fromkeys((QType.Q4_0, QType.Q5_0, QType.Q8_0, QType.IQ4_NL, QType.IQ4_XS), (0,)),
    **dict.fromkeys((QType.Q1_0, QType.Q2_0), (0,)),
    **dict.fromkeys((QType.IQ1_S, QType.IQ2_XXS, QType.IQ2_XS, QType.IQ2_S), (0,)),
    **dict.fromkeys((QType.IQ3_XXS, QType.IQ3_S), (0,)),
    **dict.fromkeys((QType.Q4_1, QType.Q5_1, QType.Q4_K, QType.Q5_K), (0, 2)),
    QType.Q2_K: (80, 82),
    QType.Q3_K: (108,),
    QType.Q6_K: (208,),
    QType.TQ1_0: (52,),
    QType.TQ2_0: (64,),
    QType.NVFP4: (),  # all bytes stand for finite scales
}
"""Where the scales of a block are (ggml/src/ggml-common.h), bytes from its start."""

EXPONENT = 0x7C00  # of a half, all set in infinities and NaNs
E8M0_NAN = 255
SCANNED_BYTES = 16 * 2**20  # of a tensor at a time


def check_numbers(file: GGUFFile, progress: OnProgress = silent) -> Iterator[Finding]:
    """Scales and floats that are NaN or infinite, and matrices in which nothing but zeros is stored.

    Raises:
        GGUFError: the file cannot be read any more.
    """
    total, done = sum(stored.n_bytes for stored in file.tensors.values()), 0
    for spec in file.specs():
        if not can_check(spec.qtype):
            yield info(spec.name, f"the numbers of {spec.qtype.name} cannot be checked here")
            continue
        for xid in range(spec.n_matrix):
            is_empty = True
            for first, blocks in _pieces(file, spec, xid):
                is_empty = is_empty and not blocks.any()
                row = bad_row(blocks, spec.qtype)
                done += blocks.nbytes
                progress(Progress("checking numbers", done, total))
                if row is not None:
                    yield error(
                        spec.label(xid),
                        f"row {first + row} holds a number that is NaN or infinite",
                        "fetch the file again; if it is whole, its checkpoint is damaged",
                    )
                    break
            if is_empty and spec.n_row > 1:
                yield warning(spec.label(xid), "all zeros", "fetch the file again, or look at its checkpoint")


def _pieces(file: GGUFFile, spec: TensorSpec, xid: int) -> Iterator[tuple[int, Array]]:
    """Some rows of a matrix at a time: the first of them, and their bytes, uint8 [rows, row bytes]."""
    step = max(1, SCANNED_BYTES // spec.row_bytes)
    for first in range(0, spec.n_row, step):
        yield first, file.read_blocks(spec, xid, (first, min(first + step, spec.n_row)))


def can_check(qtype: QType) -> bool:
    """Whether `bad_row` knows where this type stores numbers."""
    return qtype in HALVES or qtype in NUMPY_TYPES or qtype is QType.MXFP4


def bad_row(blocks: Array, qtype: QType) -> int | None:
    """The first row with a number that is not finite, None where all are; blocks are uint8 [rows, row bytes]."""
    n_rows, row_bytes = blocks.shape
    if qtype in NUMPY_TYPES:
        index = first_non_finite(blocks.view(NUMPY_TYPES[qtype]))
        return None if index is None else index // (row_bytes // NUMPY_TYPES[qtype].itemsize)
    by_block = blocks.reshape(-1, qtype.type_size)
    is_bad = np.zeros(len(by_block), bool)
    if qtype is QType.MXFP4:
        is_bad |= by_block[:, 0] == E8M0_NAN
    for start in HALVES.get(qtype, ()):
        half = np.ascontiguousarray(by_block[:, start : start + 2]).view("<u2")[:, 0]
        is_bad |= half & EXPONENT == EXPONENT
    return int(is_bad.argmax()) * n_rows // len(by_block) if is_bad.any() else None
