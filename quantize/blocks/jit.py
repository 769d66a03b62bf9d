"""How kernels are compiled: one place for the options that keep bytes equal to ggml's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba

F = TypeVar("F", bound=Callable[..., Any])


def kernel(function: F) -> F:
    """Compile a function on first use, without the GIL.

    Never with `fastmath`, which would reorder sums and fuse products; with NumPy's error model, since Python's would
    test every divisor for zero, raise, and keep the loop from being vectorised. Compiled code is kept in numba's cache,
    beside the source or in the user's cache folder; where neither can be written, each process compiles anew.
    """
    try:
        return cast(F, numba.njit(nogil=True, error_model="numpy", cache=True)(function))
    except RuntimeError:  # numba found no folder that it may write
        return cast(F, numba.njit(nogil=True, error_model="numpy")(function))
