"""All that decides the bytes of an output, in a few hashes: what must be the same for a stopped run to go on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from importlib import metadata

import numpy as np

from calibration.importance.imatrix import Imatrix
from quantize.containers.shard_index import index_shards
from quantize.recipes.layout import Plan
from quantize.sources.checkpoint import Checkpoint
from quantize.sources.gguf_file import GGUFFile

__all__ = ["fingerprint", "hashed", "of_checkpoint", "of_gguf", "of_imatrix", "of_model", "version"]


def fingerprint(
    header: bytes, plan: Plan, *, imatrix: str, checkpoint: str, slab_bytes: int
) -> dict[str, str]:
    """The fingerprint of one output, by names that a person understands.

    Args:
        header: keys and tensor infos of the file (`writer.header`).
        plan: its tensors.
        imatrix: as `of_imatrix` gives it, or the hash of what the importances are made from.
        checkpoint: as `of_checkpoint` gives it.
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


def of_checkpoint(checkpoint: Checkpoint) -> str:
    """Names, sizes and times of the shards, where each tensor lies in them, and the config; no weight is read.

    Raises:
        CheckpointError: the folder cannot be read any more.
    """
    stored, _ = index_shards(checkpoint.path)
    shards = {tensor.path.name: tensor.path.stat() for tensor in stored.values()}
    told = [
        sorted((name, found.st_size, found.st_mtime_ns) for name, found in shards.items()),
        sorted((one.name, one.path.name, one.dtype, one.shape, one.start) for one in stored.values()),
        checkpoint.config,
    ]
    return hashed([json.dumps(told, sort_keys=True, default=str).encode()])


def of_gguf(file: GGUFFile) -> str:
    """Size and time of a file, and what lies where in it; no weight is read."""
    found = file.path.stat()
    told = [
        found.st_size,
        found.st_mtime_ns,
        [(spec.name, spec.shape, spec.qtype.name) for spec in file.specs()],
    ]
    return hashed([json.dumps(told).encode()])


def of_model(source: Checkpoint | GGUFFile) -> str:
    """Of the one or the other."""
    return of_gguf(source) if isinstance(source, GGUFFile) else of_checkpoint(source)


def of_imatrix(imatrix: Imatrix | None) -> str:
    """The content of an importance matrix, wherever its file lies; "none" without one."""
    if imatrix is None:
        return "none"
    parts = [f"{imatrix.prior} {imatrix.legacy}".encode()]
    for name in sorted(imatrix.entries):
        entry = imatrix.entries[name]
        parts += [name.encode(), np.ascontiguousarray(entry.sums).tobytes(), entry.counts.tobytes()]
    return hashed(parts)


def hashed(parts: Iterable[bytes]) -> str:
    """A hash of some bytes, and of where one part ends and the next begins."""
    found = hashlib.blake2b(digest_size=16)
    for part in parts:
        found.update(len(part).to_bytes(8, "little"))
        found.update(part)
    return found.hexdigest()


def version() -> str:
    """This project's own."""
    try:
        return metadata.version("moe-gguf")
    except metadata.PackageNotFoundError:  # run from a source tree
        return "unknown"
