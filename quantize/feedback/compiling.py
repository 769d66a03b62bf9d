"""Kernels of error feedback, compiled before they are needed."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

import numpy as np

from quantize import compiling
from quantize.blocks.parts import MOVABLE, part_format
from quantize.feedback.encoder import FeedbackInput, encode_with_feedback
from quantize.telling import OnProgress, silent
from quantize.tensors import QType

__all__ = ["compile_kernels", "feeding_back"]


def compile_kernels(qtypes: Iterable[QType], progress: OnProgress = silent) -> None:
    """Compile, or load from numba's cache, what error feedback is about to use, and say so.

    Args:
        qtypes: the tensor types; repetitions are free.
        progress: told before, after each kernel, and at the end: stage "compiling kernels".
    """
    wanted = sorted(set(qtypes))
    encoders = [(np.float32, qtype, has) for qtype in wanted for has in (False, True)]
    compiling.compile_kernels(encoders, progress)
    movable = [feeding_back(qtype) for qtype in wanted if qtype in MOVABLE]
    for part in (movable[:1], movable[1:]):  # the first one compiles what all of them have in common
        if part:
            compiling.compile_uses(part, progress)


def feeding_back(qtype: QType) -> compiling.Use:
    """The use of error feedback for a type of `MOVABLE`."""
    return compiling.Use(partial(_feed_back, qtype), False, qtype.name)


def _feed_back(qtype: QType) -> None:
    form = part_format(qtype)
    assert form is not None
    n = 2 * form.block_size  # several blocks in a row, as kernels will see them
    eye = np.eye(n, dtype=np.float32)
    known = FeedbackInput(eye, eye, np.ones(n, np.float32))
    encode_with_feedback(np.zeros((2, n), np.float32), qtype, known, rounds=1)
