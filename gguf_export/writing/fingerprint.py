"""Fingerprints: everything that decides the bytes of an output, in a few hashes.

A stopped run goes on only where they are the same. A fingerprint is a dictionary from something that may change, in
words, to its hash or value. Journals and states hold them, so the values are part of those formats.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import TYPE_CHECKING

import numpy as np

from calibration.importance.imatrix import Imatrix
from quantize.recipes.layout import Plan
from quantize.sources.fingerprint import hashed

if TYPE_CHECKING:  # both import torch, and an export without text needs no torch
    from calibration.forward.settings import ForwardSettings
    from calibration.text.chunks import Chunks

__all__ = [
    "difference",
    "hashed",
    "of_calibration",
    "of_imatrix",
    "of_output",
    "of_pass",
    "version",
]


def of_output(header: bytes, plan: Plan, *, imatrix: str, checkpoint: str, slab_bytes: int) -> dict[str, str]:
    """The fingerprint of one file.

    Args:
        header: keys and tensor infos of the file (`writing.header`).
        plan: its tensors.
        imatrix: as `of_imatrix` gives it, or the hash of what the importances are made from.
        checkpoint: the source's own fingerprint (`ModelSource.fingerprint`).
        slab_bytes: the size of the pieces in which the file is made.
    """
    types = (f"{planned.spec.name} {planned.spec.shape} {planned.qtype.name}" for planned in plan.tensors)
    return {
        "version of moe-gguf": version(),
        "checkpoint": checkpoint,
        "importance matrix": imatrix,
        "types of the tensors": hashed(text.encode() for text in types),
        "metadata": hashed([header]),
        "size of the slabs": str(slab_bytes),
    }


def of_pass(texts: Sequence[Chunks], settings: ForwardSettings) -> dict[str, str]:
    """The fingerprint of a pass over texts, without that of the models.

    The number of threads is not part of it: whoever gives a slow pass more threads wants it to go on.
    """
    parts = []
    for text in texts:
        parts += [json.dumps([text.names, text.bos_id]).encode(), np.ascontiguousarray(text.tokens).tobytes()]
    return {
        "version of moe-gguf": version(),
        "text": hashed(parts),
        "length of the chunks": " ".join(str(text.n_ctx) for text in texts),
        "arithmetic": f"{settings.numerics} torch {version('torch')}",
    }


def of_calibration(chunks: Chunks, prior: float, settings: ForwardSettings) -> str:
    """One hash of everything but the checkpoint that decides the importances that a text gives."""
    digest = hashlib.sha256(np.ascontiguousarray(chunks.inputs).tobytes())
    digest.update(f"{chunks.n_ctx} {prior} {settings.numerics}".encode())
    return digest.hexdigest()


def difference(earlier: Mapping[str, str], now: Mapping[str, str]) -> str:
    """What differs between two fingerprints, as a phrase such as "the text changed since it was stopped"; "" if none.

    Args:
        earlier: the fingerprint that a journal or a state holds.
        now: that of this run.
    """
    changed = sorted(name for name in earlier.keys() | now.keys() if earlier.get(name) != now.get(name))
    if not changed:
        return ""
    return f"{' and '.join(f'the {name}' for name in changed)} changed since it was stopped"


def of_imatrix(imatrix: Imatrix | None) -> str:
    """A hash of the content of an importance matrix, wherever its file lies; "none" without a matrix."""
    if imatrix is None:
        return "none"
    parts = [f"{imatrix.prior} {imatrix.legacy}".encode()]
    for name in sorted(imatrix.entries):
        entry = imatrix.entries[name]
        parts += [name.encode(), np.ascontiguousarray(entry.sums).tobytes(), entry.counts.tobytes()]
    return hashed(parts)


def version(package: str = "moe-gguf") -> str:
    """The version of an installed package, "unknown" where it runs from a source tree that is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "unknown"
