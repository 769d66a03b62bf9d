"""All that decides the bytes of an output, in a few hashes: what must be the same for a stopped run to go on."""

from __future__ import annotations

from importlib import metadata

import numpy as np

from calibration.importance.imatrix import Imatrix
from quantize.recipes.layout import Plan
from quantize.sources.fingerprint import hashed

__all__ = ["fingerprint", "hashed", "of_imatrix", "version"]


def fingerprint(
    header: bytes, plan: Plan, *, imatrix: str, checkpoint: str, slab_bytes: int
) -> dict[str, str]:
    """The fingerprint of one output, by names that a person understands.

    Args:
        header: keys and tensor infos of the file (`writer.header`).
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


def of_imatrix(imatrix: Imatrix | None) -> str:
    """The content of an importance matrix, wherever its file lies; "none" without one."""
    if imatrix is None:
        return "none"
    parts = [f"{imatrix.prior} {imatrix.legacy}".encode()]
    for name in sorted(imatrix.entries):
        entry = imatrix.entries[name]
        parts += [name.encode(), np.ascontiguousarray(entry.sums).tobytes(), entry.counts.tobytes()]
    return hashed(parts)


def version() -> str:
    """This project's own."""
    try:
        return metadata.version("moe-gguf")
    except metadata.PackageNotFoundError:  # run from a source tree
        return "unknown"
