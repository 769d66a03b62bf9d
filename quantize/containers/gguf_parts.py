"""The parts of a split GGUF file: how they are called, and what each says of itself.

The names and rules are llama.cpp's (src/llama.cpp: llama_split_path, src/llama-model-loader.cpp): all parts lie in one
folder, the keys of the model are those of the first part, and its tensors those of all parts.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantize.containers.gguf import AGAIN, MAX_TENSORS, Container, read_container
from quantize.containers.untrusted import quoted
from quantize.exceptions import GGUFError

__all__ = [
    "MAX_PARTS",
    "Place",
    "first_part",
    "leading_part",
    "model_stem",
    "part_path",
    "parts_by_name",
    "place_of",
    "read_others",
]

MAX_PARTS = 2**16 - 1
"""split.count is a u16."""

TOGETHER = "all parts lie in one folder"
_NAME = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf", re.DOTALL)


@dataclass(frozen=True)
class Place:
    """What a file says it is: part `no`, counted from 0, of `n_parts`."""

    no: int
    n_parts: int

    @property
    def ending(self) -> str:
        """What stands behind the name of the model in that of a part."""
        return f"-{self.no + 1:05d}-of-{self.n_parts:05d}.gguf"

    def __str__(self) -> str:
        return f"part {self.no + 1} of {self.n_parts}"


def part_path(stem: Path, place: Place) -> Path:
    """Where a part of the model `stem` lies, a path without the suffix: `folder/Harmony-00001-of-00003.gguf`."""
    return stem.with_name(stem.name + place.ending)


def parts_by_name(path: Path) -> list[Path]:
    """All parts of the file of which a path names one, by the name alone; they need not be there.

    Of any other name it is the path itself.
    """
    match = _NAME.fullmatch(path.name)
    if match is None or not 1 <= int(match[2]) <= int(match[3]) <= MAX_PARTS:
        return [path]
    n_parts = int(match[3])
    return [path.with_name(match[1] + Place(no, n_parts).ending) for no in range(n_parts)]


def model_stem(path: Path) -> str:
    """The name of a model by that of its file, or of a part of it, without the suffix."""
    match = _NAME.fullmatch(path.name)
    return match[1] if match and match[1] else path.name.removesuffix(".gguf")


def place_of(path: Path, keys: Mapping[str, Any]) -> Place | None:
    """The place of a file among several, by its keys; None where it is a model of its own.

    Raises:
        GGUFError: the keys contradict each other.
    """
    n_parts = keys.get("split.count", 0)
    if type(n_parts) is not int or n_parts <= 1:
        return None
    no = keys.get("split.no")
    if type(no) is not int or not 0 <= no < n_parts <= MAX_PARTS:
        message = f"damaged: split.no is {quoted(no)} of split.count {n_parts}"
        raise GGUFError(str(path), message, AGAIN)
    return Place(no, n_parts)


def first_part(path: Path, place: Place) -> Path | None:
    """Where the first part lies, by the name of another one; None where that has no name of a part."""
    names = parts_by_name(path)
    return names[0] if len(names) == place.n_parts and names[place.no] == path else None


def leading_part(path: Path, given: Collection[Path]) -> Path | None:
    """The first part, if it is among some files, of a model of which another file among them is a later part.

    Whoever is given all files of a folder has the model with the first part.
    """
    first = parts_by_name(path)[0]
    if first == path or first not in given:
        return None
    try:
        place = place_of(first, read_container(first).keys)
    except GGUFError:  # which its reader meets, too
        return None
    return first if place is not None and place.n_parts == len(parts_by_name(path)) else None


def read_others(
    path: Path, first: Container, place: Place, see: Callable[[Path], None]
) -> list[tuple[Path, Container]]:
    """Read keys and tensor infos of all parts but the first; no weight is touched.

    Args:
        path: of the first part.
        first: what it holds.
        place: what it says it is.
        see: called with the path of each part before that is read.

    Raises:
        GGUFError: the file is not the first part or has another name; a part is missing, damaged or of another split;
            a tensor is in two of them, or there are more or fewer than the first part says.
    """
    start = first_part(path, place)
    if place.no:
        of = f"give {start.name}" if start is not None else "give the first part"
        raise GGUFError(str(path), f"is {place} of a model", of)
    if start is None:
        message = f"is {place} of a model, and its name does not end in {place.ending}, by which the others are found"
        raise GGUFError(str(path), message, "give the file the name that it had")
    n_tensors = first.keys.get("split.tensors.count")
    if type(n_tensors) is not int:
        raise GGUFError(str(path), "damaged: split.tensors.count is missing or no number", AGAIN)
    found = dict.fromkeys(first.tensors, path)
    others = []
    for no, part in enumerate(parts_by_name(path)[1:], 1):
        see(part)
        container = _read_part(part, Place(no, place.n_parts), n_tensors)
        for name in container.tensors:
            if name in found:
                message = f"tensor {quoted(name)} is in {found[name].name}, too"
                raise GGUFError(str(part), message, AGAIN)
            found[name] = part
        if len(found) > MAX_TENSORS:
            raise GGUFError(str(path), f"has more than {MAX_TENSORS} tensors", "is this a model?")
        others.append((part, container))
    if len(found) != n_tensors:
        message = f"has {len(found)} tensors in its {place.n_parts} parts, split.tensors.count is {n_tensors}"
        raise GGUFError(str(path), message, "fetch all parts again")
    return others


def _read_part(path: Path, expected: Place, n_tensors: int) -> Container:
    """One of the other parts, which is what the first one says."""
    try:
        is_missing = not path.exists()
    except OSError:  # the reader says why
        is_missing = False
    if is_missing:
        raise GGUFError(str(path), f"file is missing: {expected} of the model", TOGETHER)
    container = read_container(path)
    place = place_of(path, container.keys)
    if place != expected:
        is_it = f"is {place}" if place else "is a model of its own"
        raise GGUFError(str(path), f"{is_it}, not {expected}, as its name says", "fetch all parts again")
    total = container.keys.get("split.tensors.count", n_tensors)
    if total != n_tensors:
        message = f"is part of a model of {quoted(total)} tensors, the first part of one of {n_tensors}"
        raise GGUFError(str(path), message, "fetch all parts again")
    return container
