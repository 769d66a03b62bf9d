"""The block formats of GGUF, one small file each, and the searches that they share.

Here are bits and arithmetic alone: no file, no tensor name, no torch. `quantize.codec` leads a matrix through them.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING

from quantize.exceptions import RecipeError
from quantize.tensors import QType

if TYPE_CHECKING:  # numba takes a while to import, and to know what can be written takes no kernel
    from quantize.blocks.base import BlockFormat, FloatFormat, GroupFormat

__all__ = ["WRITABLE", "block_format", "can_encode"]

WRITABLE: tuple[QType, ...] = (
    QType.F32,
    QType.F16,
    QType.BF16,
    QType.Q8_0,
    QType.Q4_0,
    QType.Q4_1,
    QType.Q5_0,
    QType.Q5_1,
    QType.Q1_0,
    QType.Q2_0,
    QType.Q2_K,
    QType.Q3_K,
    QType.Q4_K,
    QType.Q5_K,
    QType.Q6_K,
    QType.IQ1_S,
    QType.IQ1_M,
    QType.IQ2_XXS,
    QType.IQ2_XS,
    QType.IQ2_S,
    QType.IQ3_XXS,
    QType.IQ3_S,
    QType.IQ4_NL,
    QType.IQ4_XS,
    QType.TQ1_0,
    QType.TQ2_0,
    QType.MXFP4,
    QType.NVFP4,
)
"""The types that can be encoded. The module `quantize.blocks.q4_k` offers `FORMAT` for Q4_K, and so on."""


def can_encode(qtype: QType) -> bool:
    """Whether the type can be encoded (and decoded by the kernels of this package)."""
    return qtype in WRITABLE


@cache
def block_format(qtype: QType) -> BlockFormat | GroupFormat | FloatFormat:
    """The format of a tensor type; its module is imported, and its kernels are compiled, when they are first needed.

    Raises:
        RecipeError: the type cannot be encoded here.
    """
    if not can_encode(qtype):
        known = ", ".join(known.name for known in WRITABLE)
        raise RecipeError("", f"tensor type {qtype.name} cannot be written", f"known types: {known}")
    form: BlockFormat | GroupFormat | FloatFormat = import_module(
        f"quantize.blocks.{qtype.name.lower()}"
    ).FORMAT
    return form
