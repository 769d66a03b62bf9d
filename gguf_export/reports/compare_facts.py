"""The names of the models of a comparison, and how they were measured."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import torch

from calibration.judging.side_by_side import Comparison, Model
from gguf_export.metadata.type_keys import predicted_kld
from gguf_export.writing.fingerprint import version
from quantize.containers.gguf_parts import model_stem
from quantize.containers.untrusted import label
from quantize.sources.gguf_file import GGUFFile

__all__ = ["base_name", "labels", "predicted", "protocol", "versions"]

ACTIVATIONS = {
    "exact": "exact, so that only the weights are judged",
    "int8": "rounded to 8 bits as llama.cpp's CPU kernels do",
}

PROTOCOL = "that of llama-perplexity: the second half of each chunk is scored; ± is one standard error"

PART = re.compile(r"(?<=-)|(?<=\.)(?=\D)")
"""Where one part of a file's name ends: Model-8x7B-v0.1-Q4_K_M, Model.Q4_K_M."""

FILE_TYPE = re.compile(r"(I?Q|TQ)\d_\w+|B?F16|F32|MXFP4\w*", re.IGNORECASE)


def labels(comparison: Comparison) -> list[str]:
    """A short name for each model: the end of its file's name, from where it differs from the others' and the base's.

    Where the files have nothing in common, or there is one alone, its file type; full names where short ones are equal.
    """
    base = comparison.base
    names = [_stem(model) for model in comparison.models]
    of_files = [name for model, name in zip(comparison.models, names, strict=True) if model.is_file]
    of_base = [_stem(base)] if base.kind == "model" and base.is_file else []
    cut = _cut([PART.split(name) for name in dict.fromkeys(of_files + of_base)], base_name(comparison))
    shown = [
        label("".join(PART.split(name)[cut:]) if model.is_file else name)
        for model, name in zip(comparison.models, names, strict=True)
    ]
    return shown if len(set(shown)) == len(shown) else [label(model.name) for model in comparison.models]


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


def _stem(model: Model) -> str:
    return model_stem(Path(model.name)) if model.is_file else model.name


def base_name(comparison: Comparison) -> str:
    """The name of the base's file or folder."""
    base = comparison.base
    path = base.path if base.kind == "logits" else Path(base.name)
    return label(path.name or path.resolve().name)


def predicted(model: Model) -> float | None:
    """The mean KL divergence in nats per token that a file states for its types; None where it states none."""
    return predicted_kld(model.source.keys) if isinstance(model.source, GGUFFile) else None


def versions() -> dict[str, str]:
    """Names and versions of the programs that measured."""
    return {"moe-gguf": version(), "torch": str(torch.__version__)}


def protocol(comparison: Comparison) -> list[tuple[str, str]]:
    """How it was measured, as (term, meaning) each."""
    facts = [("base", base_name(comparison))]
    for index, text in enumerate(comparison.texts):
        amount = f"{text.n_chunk:,} chunk{'s' * (text.n_chunk != 1)} of {text.n_ctx:,} tokens"
        facts.append((f"text {comparison.text_name(index)}", amount))
    facts += [("protocol", PROTOCOL), ("activations", ACTIVATIONS[comparison.activations])]
    for importances in dict.fromkeys(_importances(model) for model in comparison.models):
        if importances:
            facts.append(("importances of round trips", importances))
    return [*facts, ("versions", ", ".join(f"{name} {number}" for name, number in versions().items()))]


def _importances(model: Model) -> str:
    if model.source.kind != "round trip":
        return ""
    imatrix = model.imatrix
    if imatrix is None:
        return "none"
    parts = [Path(imatrix.file).name or "an importance matrix"]
    if imatrix.chunk_count:
        parts.append(f"{imatrix.chunk_count:,} chunks of {imatrix.chunk_size:,} tokens")
    if imatrix.prior:
        parts.append(f"prior of {imatrix.prior:g} tokens")
    return ", ".join(parts)
