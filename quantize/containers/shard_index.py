"""The places of tensors in the shards of a checkpoint, checked against the file sizes before any weight is read.

The safetensors format (https://github.com/huggingface/safetensors#format): u64 little-endian length N of the header,
N bytes of JSON `{name: {"dtype", "shape", "data_offsets": [begin, end]}, "__metadata__": {...}}`, then the data, which
the tensors cover without gap or overlap. The rules are those of the reference implementation; nothing is memory-mapped.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantize.containers.untrusted import MAX_JSON_BYTES, parse_json, quoted, read_json, regular_size
from quantize.exceptions import CheckpointError
from quantize.telling import Remark

__all__ = ["ShardTensor", "index_shards", "read_header"]

DTYPE_BITS = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 64),
    **dict.fromkeys(("F32", "I32", "U32"), 32),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 16),
    **dict.fromkeys(("BOOL", "I8", "U8", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    "F4": 4,
}
MAX_DIMS = 16
MAX_SIZE = 2**63 - 1

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
AGAIN = "download it again"


@dataclass(frozen=True)
class ShardTensor:
    """One tensor as it lies in a shard: `n_bytes` bytes at `start` of `path`, row-major, little-endian."""

    name: str  # Hugging Face's
    path: Path
    dtype: str  # of safetensors: "BF16", "F16", "F32", ...
    shape: tuple[int, ...]
    start: int  # bytes from the beginning of the file
    n_bytes: int


def index_shards(folder: Path) -> tuple[dict[str, ShardTensor], list[Remark]]:
    """All tensors of the checkpoint in a folder by Hugging Face name, and remarks on files that were left aside.

    Raises:
        CheckpointError: shards are missing, damaged, or disagree with the index; there are only pickled weights.
    """
    index = folder / INDEX
    single = folder / SINGLE
    if not index.exists():
        if not single.exists():
            raise _nothing_to_read(folder)
        return read_header(single), []
    weight_map = _weight_map(index)
    stored: dict[str, ShardTensor] = {}
    shards = sorted(set(weight_map.values()))
    for shard in shards:
        path = folder / shard
        if not path.exists():
            raise CheckpointError(str(path), f"shard is missing although {INDEX} names it", AGAIN)
        for name, tensor in read_header(path).items():
            if name in stored:
                other = stored[name].path.name
                message = f"tensor {quoted(name)} is in shard {other} too"
                raise CheckpointError(str(path), message, "remove one of them")
            if weight_map.get(name) != shard:
                raise CheckpointError(str(path), f"holds tensor {quoted(name)} but {INDEX} does not say so")
            stored[name] = tensor
    for name, shard in weight_map.items():
        if name not in stored:
            message = f"tensor {quoted(name)} is missing although {INDEX} names it"
            raise CheckpointError(str(folder / shard), message)
    beside = single.exists() and SINGLE not in shards
    left_aside = Remark(str(folder), f"{SINGLE} is not read because there is a {INDEX}")
    return stored, [left_aside] if beside else []


def read_header(path: Path) -> dict[str, ShardTensor]:
    """The tensors of one safetensors file, every byte range checked.

    Raises:
        CheckpointError: the file is truncated or its header lies about lengths, types, shapes or offsets.
    """
    size = regular_size(path)
    try:
        with path.open("rb") as file:
            n_header = int.from_bytes(file.read(8), "little")
            if size < 8 or n_header > size - 8:
                message = f"a header of {n_header} bytes does not fit into {size}"
                raise CheckpointError(str(path), f"truncated or no safetensors file: {message}", AGAIN)
            if n_header > MAX_JSON_BYTES:
                raise CheckpointError(str(path), f"header of {n_header} bytes, the limit is {MAX_JSON_BYTES}")
            content = file.read(n_header)
    except OSError as failure:
        raise CheckpointError(str(path), f"cannot be read: {failure.strerror}") from None
    if len(content) != n_header:
        raise CheckpointError(str(path), "truncated while it was read", AGAIN)
    entries = parse_json(content, f"{path}: header", CheckpointError, unique=True)
    entries.pop("__metadata__", None)
    tensors = {name: _entry(path, name, entry, 8 + n_header) for name, entry in entries.items()}
    _check_coverage(path, tensors, 8 + n_header, size)
    return tensors


def _entry(path: Path, name: str, entry: Any, data_start: int) -> ShardTensor:
    place = f"{path}: tensor {quoted(name)}"
    if not isinstance(entry, dict):
        raise CheckpointError(place, "header entry is not an object")
    dtype, shape, offsets = entry.get("dtype"), _sizes(entry.get("shape")), _sizes(entry.get("data_offsets"))
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        raise CheckpointError(place, f"unknown dtype {quoted(dtype)}")
    if shape is None:
        raise CheckpointError(place, f"shape is not a list of at most {MAX_DIMS} sizes")
    if offsets is None or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise CheckpointError(place, "data_offsets are not a range")
    begin, end = offsets
    n_bits = math.prod(shape) * DTYPE_BITS[dtype]
    if n_bits != 8 * (end - begin):
        message = f"{end - begin} bytes are stored, {dtype} {shape} has {-(-n_bits // 8)}"
        raise CheckpointError(place, message)
    return ShardTensor(name, path, dtype, tuple(shape), data_start + begin, end - begin)


def _sizes(values: Any) -> list[int] | None:
    """The values, if they are a list of sizes, else None."""
    if not isinstance(values, list) or len(values) > MAX_DIMS:
        return None
    return values if all(type(value) is int and 0 <= value <= MAX_SIZE for value in values) else None


def _check_coverage(path: Path, tensors: Mapping[str, ShardTensor], data_start: int, size: int) -> None:
    """Refuse what safetensors refuses: tensors that overlap, leave gaps, or do not end where the file ends."""
    expected = data_start
    for tensor in sorted(tensors.values(), key=lambda tensor: (tensor.start, tensor.n_bytes)):
        if tensor.start != expected:
            fault = "overlaps the one before it" if tensor.start < expected else "leaves a gap before it"
            raise CheckpointError(f"{path}: data_offsets of tensor {quoted(tensor.name)}", fault)
        expected += tensor.n_bytes
    if expected > size:
        raise CheckpointError(str(path), f"truncated: {size} bytes of {expected}", AGAIN)
    if expected < size:
        raise CheckpointError(str(path), f"{size - expected} bytes more than its header says", AGAIN)


def _weight_map(index: Path) -> dict[str, str]:
    weight_map = read_json(index, unique=True).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(str(index), "has no weight_map")
    for name, shard in weight_map.items():
        if not _is_plain_name(shard):
            message = f"{quoted(name)} points outside the folder: {quoted(shard)}"
            raise CheckpointError(str(index), message, "refused")
        if not shard.endswith(".safetensors"):
            message = f"{quoted(name)} lies in {quoted(shard)}, which is no safetensors file"
            raise CheckpointError(str(index), message)
    return weight_map


def _is_plain_name(shard: Any) -> bool:
    """No separators, no parents, no drives or streams of Windows (a colon), nothing that a terminal obeys."""
    if not isinstance(shard, str) or not shard.isprintable() or shard in ("", ".", ".."):
        return False
    return not set(shard) & set("/\\:") and len(shard.encode()) < 256


def _nothing_to_read(folder: Path) -> CheckpointError:
    names = sorted(path.name for path in folder.iterdir())
    if any(name.startswith("model-") and name.endswith(".safetensors") for name in names):
        return CheckpointError(str(folder), f"there are shards but no {INDEX}", "download it too")
    if any(name.endswith((".bin", ".pt", ".pth", ".ckpt")) for name in names):
        message = "only pickled weights, which could run code"
        return CheckpointError(str(folder), message, "convert them to safetensors first")
    remedy = "give the folder of a Hugging Face checkpoint"
    return CheckpointError(str(folder), f"neither {INDEX} nor {SINGLE}", remedy)
