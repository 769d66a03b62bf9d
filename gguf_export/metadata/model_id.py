"""A model's id taken to pieces, for the facts in it: `org/Base-8x7B-Instruct-v0.1`.

The heuristics are those of llama.cpp's converter (gguf-py/gguf/metadata.py: get_model_id_components,
id_to_title), so that metadata and file names come out as it writes them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

__all__ = ["NameParts", "is_type", "split_model_id", "title"]

_VERSION = re.compile(r"(v|iter)?\d+([.]\d+)*", re.IGNORECASE)
_TYPE = re.compile(r"i?q\d(_\w)*|b?fp?(16|32)", re.IGNORECASE)
_SIZE = re.compile(  # 7B, 8x7B, A22B, 1_5B, 7b1
    r"(A|\d+x)?\d+([._]\d+)?[KMBT]\d?|small|mini|medium|large|x?xl", re.IGNORECASE
)
_FINETUNE = re.compile(r"chat|instruct|vision|lora", re.IGNORECASE)
_UNTITLED = re.compile(r"(v\d+(?:\.\d+)*|\d.*)$")  # words that keep their case in a title


@dataclass(frozen=True)
class NameParts:
    """A model id taken to pieces; None where the id does not say."""

    name: str | None = None
    organization: str | None = None
    basename: str | None = None
    finetune: str | None = None
    version: str | None = None
    size_label: str | None = None


def title(name: str) -> str:
    """`harmony-nano v2` -> `Harmony Nano v2`: words in lower case get a capital, versions and numbers stay."""
    words = name.replace("-", " ").split()
    return " ".join(word.title() if word.islower() and not _UNTITLED.match(word) else word for word in words)


def is_type(word: str) -> bool:
    """Whether a word of a name tells the type of the weights: `bf16`, `Q4_K`."""
    return _TYPE.fullmatch(word) is not None


def split_model_id(model_id: str, n_total: int = 0) -> NameParts:
    """Take an id to pieces; `n_total` weights (0: unknown) unmask sizes that are none, such as `128k`."""
    if " " in model_id:
        return NameParts(name=model_id)  # a sentence, not an id
    organization, slash, name = model_id.partition("/")
    if not slash:
        organization, name = "", model_id
    parts = [part for part in name.split("-") if part]
    kinds = []
    for i, part in enumerate(parts):
        kind, parts[i] = _classify(part, i == 0, n_total)
        kinds.append(kind)
    if any(k == "size_label" and re.search(r"\d", p) for k, p in zip(kinds, parts, strict=True)):
        # a size in words gives way to one in numbers
        kinds = ["" if k == "size_label" and p.isalpha() else k for k, p in zip(kinds, parts, strict=True)]

    n_base = _base_length(parts, kinds)
    rest = [(kind or "finetune", part) for kind, part in zip(kinds[n_base:], parts[n_base:], strict=True)]
    label = "-".join(dict.fromkeys(part for kind, part in rest if kind == "size_label")) or None
    finetune = "-".join(part for kind, part in rest if kind == "finetune") or None
    version = "-".join(part for kind, part in rest if kind == "version") or None
    basename = "-".join(parts[:n_base]) or None
    return NameParts(
        name=name,
        organization=organization if organization and not organization.startswith(".") else None,
        basename=basename if label or finetune or version else None,  # else too ambiguous
        finetune=finetune,
        version=version,
        size_label=label,
    )


def _classify(part: str, first: bool, n_total: int) -> tuple[str, str]:
    """The kind of one part of a name ("" where it tells nothing), and the part in normal spelling."""
    if _VERSION.fullmatch(part):
        return "version", part
    if _TYPE.fullmatch(part):
        return "type", part
    if not first and _SIZE.fullmatch(part):
        part = _normal_size(part)
        if _contradicts(part, n_total):
            return "finetune", part[:-1] + part[-1].lower()
        return "size_label", part
    if not first and _FINETUNE.fullmatch(part):
        return "finetune", part
    return "", part


def _normal_size(part: str) -> str:
    """`7b` -> `7B`, `1_5B` -> `1.5B`, and bloom's `7b1` -> `7.1B`."""
    part = part.replace("_", ".")
    if part[-1].isdecimal():
        part = f"{part[:-2]}.{part[-1]}{part[-2]}"
    if len(part) > 1 and part[-2].isdecimal() and part[-1] in "kmbt":
        part = part[:-1] + part[-1].upper()
    return part


def _contradicts(part: str, n_total: int) -> bool:
    """Whether a size is so far from the true number of weights that it must mean something else."""
    try:
        weights = float(part[:-1]) * 1000 ** " KMBT".find(part[-1])
    except ValueError:  # 8x7B, A22B, large: no number to compare, taken at its word
        return False
    return n_total != 0 and abs(weights - n_total) > 7 * n_total // 8


def _base_length(parts: list[str], kinds: list[str]) -> int:
    """How many leading parts are the base name: words and versions, but no version at the very end of the name."""
    n_base = 0
    while n_base < len(parts) and (
        kinds[n_base] == "version" or (not kinds[n_base] and parts[n_base][0].isalpha())
    ):
        n_base += 1
    if n_base == len(parts):
        while n_base and kinds[n_base - 1] == "version":
            n_base -= 1
    return n_base
