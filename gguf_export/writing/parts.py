"""How a file is cut into parts: the names, keys and arithmetic of llama-gguf-split, or the parts that its source has.

Which tensor opens a new part, and the keys of each part: tools/gguf-split/gguf-split.cpp (split_strategy), and for the
parts of the source src/llama-quant.cpp (keep_split).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from gguf import GGUFValueType

from quantize.containers.gguf_parts import MAX_PARTS, Place, part_path
from quantize.containers.keys import KeyValue
from quantize.containers.untrusted import printable, quoted
from quantize.exceptions import RecipeError
from quantize.recipes.layout import Plan, PlannedTensor, padded
from quantize.sources.model_source import ModelFile

__all__ = ["Split", "part_keys", "part_paths", "part_plans"]

_UNITS = {"M": 10**6, "G": 10**9}


@dataclass(frozen=True)
class Split:
    """By what a file is cut into parts, one of the first three, and where these lie.

    max_bytes: of the tensors of a part, padded; its keys are not counted.
    max_tensors: of a part.
    keeps_parts: each tensor stays in the part in which the source has it.
    in_folders: the parts of a file lie in a folder of its name, and a file that needs one part is not cut.
    """

    max_bytes: int = 0
    max_tensors: int = 0
    keeps_parts: bool = False
    in_folders: bool = False

    @classmethod
    def of(cls, max_size: str | None, max_tensors: int | None, keeps_parts: bool) -> Split | None:
        """The split that is asked for, None for none.

        Args:
            max_size: a whole number and M or G, units of 1000, as llama-gguf-split takes it.
            max_tensors: 1 or more.
            keeps_parts: as the source is split.

        Raises:
            RecipeError: more than one is given, or a number is none.
        """
        given = {
            "split_max_size": max_size is not None,
            "split_max_tensors": max_tensors is not None,
            "keep_split": keeps_parts,
        }
        names = [name for name, is_given in given.items() if is_given]
        if len(names) > 1:
            raise RecipeError(
                names[1], "means nothing beside another way to split", "leave {setting} out", setting=names[0]
            )
        if not names:
            return None
        if max_size is not None:
            return cls(max_bytes=_bytes_of(max_size))
        if max_tensors is not None and max_tensors < 1:
            raise RecipeError(
                f"{max_tensors} tensors",
                "are no part of a file",
                "give {setting} 1 or more",
                setting="split_max_tensors",
            )
        return cls(max_tensors=max_tensors or 0, keeps_parts=keeps_parts)


def _bytes_of(size: str) -> int:
    match = re.fullmatch(r"([0-9]{1,9})([MG])", size)
    n_bytes = int(match[1]) * _UNITS[match[2]] if match else 0
    if not n_bytes:
        raise RecipeError(
            f"size {quoted(size)}",
            "is none such as 500M or 4G",
            "give {setting} as a whole number and M or G",
            setting="split_max_size",
        )
    return n_bytes


def part_plans(plan: Plan, split: Split, source: ModelFile) -> list[Plan]:
    """The plan of each part; their tensors are together those of `plan`, in their order.

    Raises:
        RecipeError: the first tensor is larger than a part may be, there are more parts than a file can count, or the
            parts of a source are to be kept that has none.
    """
    if split.keeps_parts:
        parts = _as_source(plan, source)
    elif split.max_tensors:
        n = split.max_tensors
        parts = [plan.tensors[i : i + n] for i in range(0, len(plan.tensors), n)] or [()]
    else:
        parts = list(_by_size(plan.tensors, split.max_bytes))
    if len(parts) > MAX_PARTS:
        raise RecipeError(f"{len(parts)} parts", f"are more than {MAX_PARTS}", "allow larger parts")
    return [Plan(plan.ftype, _from_the_start(tensors)) for tensors in parts]


def _as_source(plan: Plan, source: ModelFile) -> list[tuple[PlannedTensor, ...]]:
    if source.kind == "checkpoint":
        raise RecipeError(
            source.label,
            "is a checkpoint, whose shards are no parts of a GGUF file",
            "give {setting}",
            setting="split_max_size",
        )
    parts: list[list[PlannedTensor]] = [[] for _ in source.parts]
    for planned in plan.tensors:
        parts[source.tensors[planned.spec.name].part].append(planned)
    while len(parts) > 1 and not parts[-1]:  # of layers that are left out
        parts.pop()
    return list(map(tuple, parts))


def _by_size(tensors: Sequence[PlannedTensor], max_bytes: int) -> Iterator[tuple[PlannedTensor, ...]]:
    part: list[PlannedTensor] = []
    n_bytes = 0
    for planned in tensors:
        size = padded(planned.n_bytes)
        if n_bytes + size > max_bytes:
            if not part:
                raise RecipeError(
                    printable(planned.name),
                    f"takes {size} bytes, more than a part may have",
                    "give a larger {setting}",
                    setting="split_max_size",
                )
            yield tuple(part)
            part, n_bytes = [], 0
        part.append(planned)
        n_bytes += size
    yield tuple(part)


def _from_the_start(tensors: Sequence[PlannedTensor]) -> tuple[PlannedTensor, ...]:
    """The tensors one behind the other, as they lie in a file of their own."""
    moved, offset = [], 0
    for planned in tensors:
        moved.append(replace(planned, offset=offset))
        offset += padded(planned.n_bytes)
    return tuple(moved)


def part_paths(path: Path, n_parts: int) -> list[Path]:
    """The names of the parts of a file."""
    return [part_path(path.with_suffix(""), Place(no, n_parts)) for no in range(n_parts)]


def part_keys(keys: Sequence[KeyValue], split: Split, no: int, plans: Sequence[Plan]) -> tuple[KeyValue, ...]:
    """The keys of one part: the first has those of the model, and each says which part it is.

    Args:
        keys: of the model.
        split: by what it is split; the two programs write the keys in different orders.
        no: which part, counted from 0.
        plans: of all parts.
    """
    of_model = tuple(keys) if no == 0 else ()
    if split.keeps_parts and len(plans) == 1:
        return of_model
    n_tensors = sum(len(plan.tensors) for plan in plans)
    which = KeyValue("split.no", no, GGUFValueType.UINT16)
    count = KeyValue("split.count", len(plans), GGUFValueType.UINT16)
    total = KeyValue("split.tensors.count", n_tensors, GGUFValueType.INT32)
    return (*of_model, which, *((count, total) if split.keeps_parts else (total, count)))
