"""Types of tensors as a person spells them: `Q4_K`, `PATTERN=TYPE`, a file of such pairs."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path

from quantize.blocks import WRITABLE
from quantize.containers.untrusted import quoted, read_bytes
from quantize.exceptions import RecipeError
from quantize.tensors import QType

__all__ = [
    "anchored",
    "compiled",
    "parse_qtype",
    "parse_tensor_type",
    "read_tensor_types",
    "tensor_types_text",
]

MAX_FILE_BYTES = 2**20  # of a file of tensor types


def parse_qtype(name: str) -> QType:
    """A tensor type by its name, in any case.

    Raises:
        RecipeError: there is no such type, or it cannot be written.
    """
    chosen = next((qtype for qtype in WRITABLE if qtype.name == name.upper()), None)
    if chosen is None:
        known = ", ".join(qtype.name for qtype in WRITABLE)
        raise RecipeError("", f"unknown tensor type {quoted(name)}", f"known: {known}")
    return chosen


def parse_tensor_type(text: str) -> tuple[str, QType]:
    """`PATTERN=TYPE`, split at the first `=`, as in llama-quantize's `--tensor-type`.

    Raises:
        RecipeError: not of that form, no regular expression, or no type.
    """
    pattern, _, name = text.partition("=")
    if not pattern or not name:
        message = f"tensor type {quoted(text)} is not of the form PATTERN=TYPE"
        raise RecipeError("", message, "write it as in attn_q=q8_0")
    compiled(pattern)
    return pattern, parse_qtype(name)


def read_tensor_types(path: Path) -> tuple[tuple[str, QType], ...]:
    """The `PATTERN=TYPE` of a file, separated by spaces or newlines: llama-quantize's `--tensor-type-file`.

    Raises:
        RecipeError: the file cannot be read, or something in it is no `PATTERN=TYPE`.
    """
    words = read_bytes(
        path, MAX_FILE_BYTES, RecipeError
    ).split()  # at ASCII white space, as a C++ stream does
    try:
        return tuple(parse_tensor_type(word.decode("utf-8")) for word in words)
    except UnicodeDecodeError as error:
        raise RecipeError(str(path), "not a text file in UTF-8") from error
    except RecipeError as error:
        raise RecipeError(str(path), error.message, error.remedy) from error


def anchored(types: Mapping[str, QType]) -> tuple[tuple[str, QType], ...]:
    """The expressions that find one name each, with its type: `Recipe.tensor_types` of a choice by name.

    Names are those of llama.cpp, in lower case and without white space.
    """
    return tuple((f"^{re.escape(name)}$", qtype) for name, qtype in types.items())


def tensor_types_text(tensor_types: Iterable[tuple[str, QType]]) -> str:
    """The file that `read_tensor_types` reads, and llama-quantize: one `PATTERN=TYPE` a line."""
    return "".join(f"{pattern}={qtype.name.lower()}\n" for pattern, qtype in tensor_types)


def compiled(pattern: str) -> re.Pattern[str]:
    """A regular expression over names of tensors, in lower case as llama-quantize makes it.

    Raises:
        RecipeError: it is malformed.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # [[:digit:]] is only a warning to Python, and not what was meant
            return re.compile(pattern.lower())
    except (re.error, Warning, OverflowError, RecursionError) as error:
        message = f"{quoted(pattern)} is not a regular expression: {quoted(error)}"
        raise RecipeError("", message) from error
