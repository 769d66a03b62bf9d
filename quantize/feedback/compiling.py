"""Kernels of error feedback, compiled before they are needed."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from quantize import compiling
from quantize.blocks.parts import part_format
from quantize.feedback.encoder import FeedbackInput, encode_with_feedback
from quantize.telling import OnProgress, Progress, silent
from quantize.tensors import QType

__all__ = ["compile_kernels"]


def compile_kernels(qtypes: Iterable[QType], progress: OnProgress = silent) -> None:
    """Compile, or load from numba's cache, what error feedback is about to use, and say so.

    Args:
        qtypes: the tensor types; repetitions are free.
        progress: told before each kernel or type, and at the end: stage "compiling kernels".
    """
    wanted = sorted(set(qtypes))
    compiling.compile_kernels(
        [(np.float32, qtype, has) for qtype in wanted for has in (False, True)], progress
    )
    forms = [form for form in map(part_format, wanted) if form is not None]
    for done, form in enumerate(forms):
        progress(Progress("compiling kernels", done, len(forms), "types"))
        n = 2 * form.block_size  # several blocks in a row, as kernels will see them
        eye = np.eye(n, dtype=np.float32)
        known = FeedbackInput(eye, eye, np.ones(n, np.float32))
        encode_with_feedback(np.zeros((2, n), np.float32), form.qtype, known, rounds=1)
    progress(Progress("compiling kernels", len(forms), len(forms), "types"))
