"""The file type of a copy: that which the source states, or the one that most of its tensors have."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from quantize.ggml_types import FileType
from quantize.tensors import QType

__all__ = ["converted_file_type", "guessed_file_type"]

_OTHER_NAMES = {
    "F32": "ALL_F32",
    "Q3_K": "MOSTLY_Q3_K_M",
    "Q4_K": "MOSTLY_Q4_K_M",
    "Q5_K": "MOSTLY_Q5_K_M",
}


def guessed_file_type(types: Iterable[QType]) -> int:
    """The number under which llama.cpp's loader knows a file that states none (src/llama-model-loader.cpp).

    Args:
        types: of all tensors, in the order by layer and name: of several that are equally frequent, the one counts
            that was the most frequent first.
    """
    counts = Counter[QType]()
    most, highest = QType.F32, 0
    for qtype in types:
        counts[qtype] += 1
        if counts[qtype] > highest:
            most, highest = qtype, counts[qtype]
    return _of_type(most) | FileType.GUESSED


def converted_file_type(weights: Iterable[tuple[QType, int]]) -> int:
    """The number that a converter states for a checkpoint's own types: that of most weights, or of MXFP4.

    Where there is MXFP4, the floats beside it do not count (conversion/base.py: ModelBase.prepare_metadata).

    Args:
        weights: the type of each tensor, and how many weights it has.
    """
    counts = Counter[QType]()
    for qtype, n in weights:
        counts[qtype] += n
    if QType.MXFP4 in counts:
        return int(FileType.MOSTLY_MXFP4_MOE)
    return _of_type(max(counts, key=lambda qtype: counts[qtype], default=QType.F32))


def _of_type(qtype: QType) -> int:
    name = _OTHER_NAMES.get(qtype.name, f"MOSTLY_{qtype.name}")
    known = FileType.__members__.get(name, FileType.ALL_F32)
    return int(known)
