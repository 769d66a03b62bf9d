"""Whether the shards of a checkpoint are all there and whole, and of one float type."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Container, Iterator, Mapping
from pathlib import Path

from gguf_export.checking.findings import Finding, error, info, warning
from quantize.containers.shard_index import INDEX, ShardTensor, index_shards
from quantize.containers.untrusted import quoted, read_json
from quantize.exceptions import CheckpointError
from quantize.families.binding import QTYPES
from quantize.sources.fp8 import Fp8Tensor

__all__ = ["check_shards", "check_types"]

DOWNLOAD = "download it again"
LFS = b"version https://git-lfs"
"""How the file begins that Git LFS leaves in the place of another one."""


def check_shards(path: Path) -> Iterator[Finding]:
    """Whether every shard of the checkpoint in folder `path` is there and whole."""
    try:
        stored, remarks = index_shards(path)
    except CheckpointError as fault:
        faults = [*_pointers(path), *_missing_shards(path)]
        yield from faults
        # An error without a place, where there are such faults, is one of them.
        if not faults or fault.place not in {"", *(finding.place for finding in faults)}:
            yield Finding.of(fault, remedy=DOWNLOAD, place=str(path))
        return
    except OSError as fault:
        yield error(str(path), f"cannot be read: {fault.strerror}", "")
        return
    for remark in remarks:
        if remark.place == str(path / INDEX):
            yield Finding.of_remark(
                remark, "warning", remedy="download the index again: what the shards say counts"
            )
    if (path / INDEX).exists():
        metadata = read_json(path / INDEX).get("metadata")
        declared = metadata.get("total_size") if isinstance(metadata, dict) else None
        n_bytes = sum(tensor.n_bytes for tensor in stored.values())
        if isinstance(declared, int) and declared != n_bytes:
            yield warning(
                str(path / INDEX),
                f"total_size is {declared}, the shards hold {n_bytes} bytes",
                "compare with the source",
            )


def _missing_shards(path: Path) -> Iterator[Finding]:
    """Shards that the index names and that are not there; names that lead out of the folder are not followed."""
    try:
        weight_map = read_json(path / INDEX).get("weight_map")
    except CheckpointError:
        return
    names = weight_map.values() if isinstance(weight_map, dict) else ()
    plain = {name for name in names if isinstance(name, str) and re.fullmatch(r"[\w-][\w.-]{0,200}", name)}
    for name in sorted(plain):
        if not (path / name).exists():
            yield error(str(path / name), f"shard is missing although {INDEX} names it", DOWNLOAD)


def _pointers(path: Path) -> Iterator[Finding]:
    """Shards that Git LFS has not fetched yet; where one is a pointer, all are as a rule, and one is enough to name."""
    pointer = next((shard for shard in sorted(path.glob("*.safetensors")) if _is_pointer(shard)), None)
    if pointer is not None:
        yield error(str(pointer), "is a pointer of Git LFS, not the file", "git lfs pull")


def _is_pointer(path: Path) -> bool:
    if not path.is_file():  # a pipe would be waited for
        return False
    try:
        with path.open("rb") as file:
            return file.read(len(LFS)) == LFS
    except OSError:
        return False


def check_types(stored: Mapping[str, ShardTensor], routers: Container[str]) -> Iterator[Finding]:
    """A mixture of float types: some tensors were rounded and others not.

    Args:
        stored: the tensors of the shards; those of FP8 with scales are not counted, for other matrices are not.
        routers: names of those that choose the experts; some models keep them alone in float32.
    """
    matrices = {
        tensor.name: tensor
        for tensor in stored.values()
        # codes of quantized matrices are of no float type
        if len(tensor.shape) > 1 and tensor.dtype in QTYPES and not isinstance(tensor, Fp8Tensor)
    }
    counts = Counter(tensor.dtype for tensor in matrices.values())
    if len(counts) < 2:
        return
    rarest = counts.most_common()[-1][0]
    names = [name for name, tensor in matrices.items() if tensor.dtype == rarest]
    types = ", ".join(f"{n} {dtype}" for dtype, n in counts.most_common())
    text = f"matrices are stored in several types ({types}), {quoted(names[0])} as {rarest}"
    if all(name in routers for name in names):
        yield info("shards", text)
    else:
        yield warning("shards", text, "harmless if it was meant; otherwise merge again with one dtype")
