"""What llama.cpp's converter does to each number of some tensors."""

from __future__ import annotations

import numpy as np

from quantize.families.stored import Change
from quantize.tensors import Array

__all__ = ["changed"]


def changed(values: Array, change: Change) -> Array:
    """The numbers, of any shape, behind the change; float32 where there is one."""
    if change == "plus_one":
        return values + np.float32(1)
    if change == "minus_exp":  # rounded once, which is what a good single-precision exp gives
        exponentials: Array = -np.exp(values.astype(np.float64)).astype(np.float32)
        return exponentials
    return values
