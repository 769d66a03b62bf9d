"""How wide the vectors of our kernels are, whatever else numba compiles in the same process.

LLVM takes 256 bits on Intel's processors with AVX-512, since on the first of them (Skylake, Cascade Lake) wide vectors
lowered the clock of a core for some time, whatever it did next. Kernels do nothing else for seconds, and the later
processors hardly slow down. AMD's get 512 bits from LLVM already.

The width is said by an attribute of each function, `prefer-vector-width`, as clang's option of that name does. Bytes
are the same at any width: each lane of a vector is computed for itself. numba has no option for it; what is used here
are its compiler pipelines, and parts that are private to numba and llvmlite. Should those be gone one day, kernels are
compiled at LLVM's own width.
"""

from __future__ import annotations

import os
import warnings
from contextlib import suppress
from importlib import import_module
from typing import Any

import llvmlite.binding
import numba

from quantize.telling import Remark, RemarkWarning

__all__ = ["SETTING", "WIDTHS", "vector_width", "width_options"]

SETTING = "MOE_GGUF_VECTOR_WIDTH"
"""An environment variable: bits of a vector, 0 for LLVM's own choice. `docs/faq.md` tells of it."""

WIDTHS = {"icelake-server": 512, "sapphirerapids": 512, "emeraldrapids": 512, "graniterapids": 512}
"""Bits by processor, in LLVM's names, where LLVM's own choice is slower; `docs/measured.md` has what was measured."""


def vector_width() -> int:
    """Bits of the vectors of kernels; 0 leaves them to LLVM."""
    wish = os.environ.get(SETTING, "")
    if wish in ("0", "128", "256", "512"):
        return int(wish)
    if wish:
        remark = Remark(SETTING, f"{wish!r} is no width of vectors: it is ignored", "give 0, 128, 256 or 512")
        warnings.warn(RemarkWarning(remark), stacklevel=2)
    name = getattr(numba.config, "CPU_NAME", None) or llvmlite.binding.get_host_cpu_name()
    return WIDTHS.get(name, 0)


def width_options(width: int) -> dict[str, Any]:
    """Options of `numba.njit` that make vectors of `width` bits; none where that is 0, or numba has no such parts."""
    if not width:
        return {}
    try:
        library_class: Any = import_module("numba.core.codegen").JITCodeLibrary
        compiler_class: Any = import_module("numba.core.compiler").Compiler
    except (ImportError, AttributeError):
        return {}
    attribute = f'"prefer-vector-width"="{width}"'

    class Library(library_class):  # type: ignore[misc]
        """The code of a kernel: each function that comes into it gets the attribute."""

        def add_ir_module(self, ir_module: Any) -> None:
            with suppress(AttributeError, TypeError):
                for function in ir_module.functions:
                    if function.blocks:  # not only declared; the set's own `add` takes what llvmlite knows
                        set.add(function.attributes, attribute)
            super().add_ir_module(ir_module)

    class WideCompiler(compiler_class):  # type: ignore[misc]
        """numba's own pipeline, into a library of ours where it would create one."""

        def define_pipelines(self) -> Any:
            with suppress(AttributeError, TypeError):
                if self.state.library is None:
                    library = Library(self.state.targetctx.codegen(), self.state.func_id.func_qualname)
                    library.enable_object_caching()
                    self.state.library = library
            return super().define_pipelines()

    return {"pipeline_class": WideCompiler}
