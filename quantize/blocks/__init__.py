"""The block formats, one small file each; a format's kernels are compiled only when it is asked for."""

from __future__ import annotations

from functools import cache
from importlib import import_module

from quantize.blocks.base import BlockFormat
from quantize.exceptions import RecipeError
from quantize.tensors import QType

__all__ = ["MODULES", "BlockFormat", "block_format"]

MODULES: dict[QType, str] = {
    QType.F32: "f32",
    QType.F16: "f16",
    QType.BF16: "bf16",
    QType.Q8_0: "q8_0",
    QType.Q4_0: "q4_0",
    QType.Q4_1: "q4_1",
    QType.Q5_0: "q5_0",
    QType.Q5_1: "q5_1",
    QType.Q2_K: "q2_k",
    QType.Q3_K: "q3_k",
    QType.Q4_K: "q4_k",
    QType.Q5_K: "q5_k",
    QType.Q6_K: "q6_k",
    QType.IQ4_NL: "iq4_nl",
    QType.IQ4_XS: "iq4_xs",
    QType.MXFP4: "mxfp4",
}
"""Each module offers `FORMAT: BlockFormat`."""


@cache
def block_format(qtype: QType) -> BlockFormat:
    """The format of a tensor type.

    Raises:
        RecipeError: nobody here can write that type.
    """
    if qtype not in MODULES:
        known = ", ".join(known.name for known in MODULES)
        raise RecipeError(f"tensor type {qtype.name} cannot be written; known types: {known}")
    module = import_module(f"quantize.blocks.{MODULES[qtype]}")
    found: BlockFormat = module.FORMAT
    return found
