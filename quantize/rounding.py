"""The ways to choose codes on a grid that is already fitted. So far one: the nearest code, as llama.cpp does."""

from __future__ import annotations

import numpy as np

from quantize.blocks.jit import kernel
from quantize.blocks.lanes import LANES, ZERO, nearest_code
from quantize.tensors import Array


@kernel
def nearest(
    n: int, nmax: np.float32, x: Array, scale: Array, minimum: Array, best_iscale: Array, best_min: Array, codes: Array
) -> None:
    """Codes 0..nmax of x [n * LANES] (uint8, same layout) on the grid scale * code - minimum, all [LANES].

    Where the scale became 0, ggml leaves the codes of its search, which are the nearest on `best_iscale` and `best_min`.
    """
    for k in range(n):
        for i in range(LANES):
            v = x[k * LANES + i]
            d = scale[i]
            code = nearest_code((v + minimum[i]) / d, ZERO, nmax)
            left = nearest_code(best_iscale[i] * (v - best_min[i]), ZERO, nmax)
            codes[k * LANES + i] = np.uint8(left if d == ZERO else code)
