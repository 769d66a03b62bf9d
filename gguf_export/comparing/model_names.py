"""Short names for models: what tells each from the others, and no more."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from quantize.containers.gguf_parts import model_stem
from quantize.containers.untrusted import label, quoted
from quantize.exceptions import ChoiceError

__all__ = ["distinct_paths", "refuse_twins", "short_names"]

PART = re.compile(r"(?<=-)|(?<=\.)(?=\D)")
"""Where one part of a file's name ends: Model-8x7B-v0.1-Q4_K_M, Model.Q4_K_M."""

FILE_TYPE = re.compile(r"(I?Q|TQ)\d_\w+|B?F16|F32|(MX|NV)FP4\w*", re.IGNORECASE)


def short_names(paths: Sequence[str], base: str, base_file: str = "") -> list[str]:
    """A short name for each file: the end of its name, from where it differs from the others' and the base's.

    Where files have nothing in common, or there is one alone, its file type; where short names are equal, with the
    folders that tell them apart.

    Args:
        paths: of files.
        base: name of what they are held against.
        base_file: path of the base, where that is a file.
    """
    stems = [model_stem(Path(path)) for path in paths]
    compared = dict.fromkeys(stems + ([model_stem(Path(base_file))] if base_file else []))
    cut = _cut([PART.split(stem) for stem in compared], base)
    ends = ["".join(PART.split(stem)[cut:]) for stem in stems]
    folders = _folders(paths, ends)
    return [label(f"{folder}{end}") for folder, end in zip(folders, ends, strict=True)]


def distinct_paths(paths: Sequence[str]) -> list[str]:
    """The name of each file, behind the folders that tell it from the others where names are equal."""
    names = [Path(path).name for path in paths]
    return [f"{folder}{name}" for folder, name in zip(_folders(paths, names), names, strict=True)]


def refuse_twins(labels: Sequence[str]) -> None:
    """Refuse models that no report could tell apart.

    Raises:
        ChoiceError: two have one name.
    """
    for name in labels:
        if labels.count(name) > 1:
            raise ChoiceError("", f"two models are called {quoted(name)}", "name them apart, as in NAME=FILE")


def _folders(paths: Sequence[str], names: Sequence[str]) -> list[str]:
    """For each path "", or of those that share a name as few of its folders as tell them all apart, each with "/"."""
    folders = ["" for _ in paths]
    for name in {name for name in names if names.count(name) > 1}:
        twins = [i for i, other in enumerate(names) if other == name]
        parents = [[part for part in Path(paths[i]).parts[:-1] if part != "/"] for i in twins]
        for depth in range(1, max(map(len, parents)) + 1):
            found = ["".join(f"{part}/" for part in parts[-depth:]) for parts in parents]
            for i, folder in zip(twins, found, strict=True):
                folders[i] = folder
            if len(set(found)) == len(found):
                break
    return folders


def _cut(names: Sequence[list[str]], base: str) -> int:
    """The number of parts that all names have in common; one name alone is compared with the base's."""
    first = names[0] if names else []
    if len(names) > 1:
        shortest = min(map(len, names))
        return next(
            (i for i in range(shortest - 1) if any(parts[i] != first[i] for parts in names)), shortest - 1
        )
    typed = next((i for i, part in enumerate(first) if FILE_TYPE.fullmatch(part.rstrip("-."))), 0)
    for i in range(1, len(first)):
        if "".join(first[:i]).rstrip("-.") == base:
            return i
    return typed
