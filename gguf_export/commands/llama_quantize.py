"""What stands behind the options of llama-quantize: the words of its command line (tools/quantize/quantize.cpp)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import click

__all__ = ["Words", "parse_words"]

_ALIASES = ("Q3_K", "Q4_K", "Q5_K")
"""Names that stand for those with `_M` behind them; llama-quantize finds them first when it looks for a number."""


@dataclass(frozen=True)
class Words:
    """The words, each in its place."""

    model: str
    out: Path
    ftype: str
    n_thread: int | None
    """None for all processors."""


def parse_words(words: tuple[str, ...], *, keep_split: bool = False) -> Words:
    """IN [OUT] TYPE [NTHREADS]: the second word is OUT where it is no type.

    With `keep_split` OUT is what stands before `-00001-of-00003.gguf`, and may end in `.gguf`.

    Raises:
        UsageError: a word is missing or is not what stands there.
    """
    if len(words) < 2:
        raise click.UsageError("TYPE is missing, such as Q4_K_M")
    model, *rest = words
    named = _type_of(rest[0])
    if named is None:
        name, rest = rest[0], rest[1:]
        if keep_split:
            name = f"{name[:-5] if '.gguf' in name else name}.gguf"
        out = Path(name)
        if not rest:
            raise click.UsageError(f"{words[1]!a} is no type, and as OUT.gguf it needs a TYPE behind it")
        named = _type_of(rest[0])
        if named is None:
            raise click.UsageError(f"{rest[0]!a} is no type, such as Q4_K_M")
    else:
        out = Path(f"{re.sub(r'[^/]*$', '', model)}ggml-model-{named}.gguf")
    if len(rest) > 2:
        raise click.UsageError(f"nothing may stand behind NTHREADS, and {rest[2]!a} does")
    return Words(model, out, named, _threads(rest[1]) if rest[1:] else None)


def _type_of(word: str) -> str | None:
    """The name of a file type as llama-quantize puts it into names of files; None where the word is no type.

    Types that cannot be made here are types, too: nobody means a file by them.
    """
    from quantize.ggml_types import FileType
    from quantize.recipes.ftypes import FTYPES

    known = {member.name.removeprefix("MOSTLY_").removeprefix("ALL_"): int(member) for member in FileType}
    names = [*_ALIASES, *known, *(ftype.name for ftype in FTYPES), "COPY"]
    if word.upper() in names:
        return word.upper()
    number = re.match(r"\s*\+?([0-9]+)", word)  # of "15x", too, as C++ reads it
    if number is None:
        return None
    by_number = {id_: name for name, id_ in known.items()}
    name = by_number.get(int(number[1]))
    alias = (name or "").removesuffix("_M")
    return alias if alias in _ALIASES else name


def _threads(word: str) -> int | None:
    number = re.match(r"\s*\+?([0-9]+)", word)
    if number is None:
        raise click.UsageError(f"{word!a} is no number of threads")
    return int(number[1]) or None
