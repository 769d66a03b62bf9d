"""How kernels are compiled: one place for the options that keep bytes equal to ggml's, and for the cache."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar, cast

import numba

from quantize.blocks.kernel_cache import check_cache, enable_cache
from quantize.blocks.vector_width import vector_width, width_options

F = TypeVar("F", bound=Callable[..., Any])

JIT = not getattr(numba.config, "DISABLE_JIT", 0)
"""Whether kernels are compiled; NUMBA_DISABLE_JIT=1 runs them as plain Python, slowly, to the same bytes."""


WIDTH = vector_width() if JIT else 0
OPTIONS: dict[str, Any] = {
    "nogil": True,
    "error_model": "numpy",
    "no_cfunc_wrapper": True,
    **width_options(WIDTH),
}
LEAF: dict[str, Any] = OPTIONS | {"_nrt": False}  # no reference counts
INLINED: dict[str, Any] = {"forceinline": True, "no_cpython_wrapper": True}
"""Of functions that only kernels call: a way in for Python would take a tenth of the time that compiling takes."""


def kernel(function: F) -> F:
    """Compile a function on first use, without the GIL.

    Never with `fastmath`, which would reorder sums and fuse products; with NumPy's error model, since Python's would
    test every divisor for zero, raise, and keep the loop from being vectorised. Compiled code is kept in numba's cache,
    beside the source or in the user's cache folder (`kernel_cache`); where neither can be written, each process
    compiles anew.
    """
    return cast(F, _cached(numba.njit(**OPTIONS)(function)))


def leaf(function: F) -> F:
    """A kernel that allocates no array and returns none.

    So its slices need no reference counts, which are atomic operations, and cost more than a short loop does.
    """
    return cast(F, _cached(numba.njit(**LEAF)(function)))


def inlined_leaf(function: F) -> F:
    """A part of kernels as `inlined`, and a `leaf`: for short work, since an array in a call counts seven arguments."""
    return cast(F, numba.njit(**LEAF, **INLINED)(function))


def _cached(compiled: Any) -> Any:
    if JIT:
        try:
            enable_cache(compiled)
        except RuntimeError:  # there is no folder that can be written
            return compiled
        # numba compiles callees into their caller, and would look only at the caller's own file for changes.
        check_cache(compiled, _stamp_of_sources(), WIDTH)
    return compiled


def inlined(function: F) -> F:
    """A part of kernels: compiled into each caller whatever its size, since a loop around a call is no vector loop."""
    return cast(F, numba.njit(**OPTIONS, **INLINED)(function))


@cache
def _stamp_of_sources() -> str:
    """A hash of every file in which callees lie."""
    files = sorted(Path(__file__).parent.glob("*.py"))
    return sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
