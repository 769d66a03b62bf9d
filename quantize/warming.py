"""A warm start: every kernel compiled ahead, so that containers and workers find all of them in numba's cache.

What is kept is of use to processes of the same sources, the same version of numba, and the same processor: numba's key
holds the name of the processor and all its features (`numba.core.codegen.CPUCodegen.magic_tuple`).
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numba
import numpy as np
import numpy.typing as npt
from numba.core.registry import cpu_target

from quantize.blocks import WRITABLE
from quantize.blocks.jit import JIT
from quantize.blocks.kernel_cache import folder_of, unwritten
from quantize.blocks.parts import MOVABLE
from quantize.blocks.tiles import copy_rows
from quantize.codec import first_with
from quantize.compiling import compile_uses, decoding, encoding, scanning
from quantize.containers.untrusted import quoted
from quantize.exceptions import ChoiceError, OutputError, RecipeError
from quantize.feedback.compiling import feeding_back
from quantize.feedback.moves import values_of
from quantize.recipes.ftypes import FTYPES, ftype
from quantize.telling import OnProgress, silent
from quantize.tensors import QType

__all__ = ["Warmed", "types_of", "warm"]

FOLDER = "let the environment variable NUMBA_CACHE_DIR name a folder that can be written"


@dataclass(frozen=True)
class Warmed:
    """What `warm` did, and where the cache lies."""

    types: tuple[QType, ...]
    n_compiled: int  # kernels that were not in the cache; those of a codebook format count as one
    seconds: float
    processor: str  # as LLVM calls it
    folders: tuple[Path, ...]
    n_bytes: int  # of all kernels in the folders, whatever their types

    @property
    def place(self) -> str:
        """The folder in which all the others lie, as a person would name it."""
        return os.path.commonpath(self.folders)

    def as_dict(self) -> dict[str, Any]:
        """Everything, for JSON."""
        return {
            "types": [qtype.name for qtype in self.types],
            "compiled": self.n_compiled,
            "seconds": round(self.seconds, 3),
            "processor": self.processor,
            "folders": [str(folder) for folder in self.folders],
            "bytes": self.n_bytes,
        }


def types_of(names: Iterable[str]) -> tuple[QType, ...]:
    """The tensor types of names, each of a tensor type or a file type, in any case; all that can be written if none.

    A file type stands for all types that its tensors can have, those for rows that blocks do not divide included.

    Raises:
        RecipeError: a name is neither.
    """
    found: set[QType] = set()
    for name in names:
        if name.upper() in {known.name for known in WRITABLE}:
            found.add(QType[name.upper()])
        if name.upper() in {known.name for known in FTYPES} or name.upper() not in QType.__members__:
            found |= _types_of_file(name)
        elif QType[name.upper()] not in WRITABLE:
            raise RecipeError("", f"tensor type {name.upper()} cannot be written", _known())
    return tuple(qtype for qtype in WRITABLE if not found or qtype in found)


def _types_of_file(name: str) -> frozenset[QType]:
    try:
        return ftype(name).qtypes
    except RecipeError:
        raise RecipeError("", f"unknown type {quoted(name)}", _known()) from None


def _known() -> str:
    names = dict.fromkeys([*(known.name for known in WRITABLE), *(known.name for known in FTYPES)])
    return f"known: {', '.join(names)}"


def warm(types: Iterable[str] = (), *, feedback: bool = True, progress: OnProgress = silent) -> Warmed:
    """Compile what the cache lacks: encoders of all types of weights, with and without importances, and decoders.

    Args:
        types: names of tensor types or file types; by default all that can be written.
        feedback: compile error feedback, too, for the types that have it.
        progress: stage "compiling kernels".

    Raises:
        RecipeError: a name is unknown.
        ChoiceError: numba is told not to compile.
        OutputError: the cache cannot be written.
    """
    started = time.monotonic()
    qtypes = types_of(types)
    if not JIT:
        raise ChoiceError("", "NUMBA_DISABLE_JIT is set: nothing can be compiled", "unset it")
    folders = _folders()
    dtypes: tuple[npt.DTypeLike, ...] = (np.uint16, np.float32)  # bits of bfloat16; float16 becomes float32
    uses = [scanning(dtype) for dtype in dtypes]
    for qtype in qtypes:
        uses += [encoding(dtype, qtype, has) for dtype in dtypes for has in (False, True)]
        uses.append(decoding(qtype))
    n_compiled = compile_uses(uses, progress)
    fed_back = [feeding_back(qtype) for qtype in qtypes if feedback and qtype in MOVABLE]
    # The first one compiles what all of them have in common.
    n_compiled += sum(compile_uses(part, progress) for part in (fed_back[:1], fed_back[1:]) if part)
    for folder, reason in unwritten().items():
        raise OutputError(str(folder), f"compiled kernels cannot be written ({reason})", FOLDER)
    return Warmed(
        qtypes,
        n_compiled,
        time.monotonic() - started,
        cpu_target.target_context.codegen().magic_tuple()[1],
        folders,
        sum(path.stat().st_size for folder in folders for path in folder.glob("*.nbc")),
    )


def _folders() -> tuple[Path, ...]:
    """The folders of the cache, one for each of the folders in which kernels lie.

    Raises:
        OutputError: there is none, or another one than NUMBA_CACHE_DIR.
    """
    found = [folder_of(compiled) for compiled in (copy_rows, first_with, values_of)]
    folders = tuple(folder for folder in found if folder is not None)
    wished = getattr(numba.config, "CACHE_DIR", "")
    if wished and not all(folder.is_relative_to(Path(wished).absolute()) for folder in folders):
        raise OutputError(
            wished, "no folder that can be written, so compiled kernels cannot be kept there", FOLDER
        )
    if len(folders) < len(found):
        message = (
            "compiled kernels cannot be kept: neither the package nor the user's cache folder can be written"
        )
        raise OutputError("", message, FOLDER)
    return folders
