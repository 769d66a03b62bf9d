"""The places of tensors in the shards of a checkpoint, checked against the file sizes before any weight is read.

The safetensors format (https://github.com/huggingface/safetensors#format): u64 little-endian length N of the header,
N bytes of JSON `{name: {"dtype", "shape", "data_offsets": [begin, end]}, "__metadata__": {...}}`, then the data, which
the tensors cover without gap or overlap. The rules are those of the reference implementation; nothing is memory-mapped.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from quantize.containers.untrusted import MAX_JSON_BYTES, parse_json, quoted, read_json, regular_size
from quantize.exceptions import CheckpointError
from quantize.telling import Remark

__all__ = ["INDEX", "ShardTensor", "index_shards", "read_header"]

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
SHARD = re.compile(r"model-([0-9]{1,9})-of-([0-9]{1,9})\.safetensors")
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
    """All tensors of the checkpoint in a folder by Hugging Face name, and remarks on what is there besides.

    The shards are those that the index names and the others of their set; without an index, a single file, or a whole
    set: the names say how many there are. Where a tensor lies the headers of the shards say; an index that says
    otherwise is remarked, at its path.

    Raises:
        CheckpointError: shards are missing, damaged, or hold a tensor twice; there are only pickled weights.
    """
    index = folder / INDEX
    weight_map = _weight_map(index) if index.exists() else None
    shards = _shards(folder) if weight_map is None else _with_their_sets(folder, set(weight_map.values()))
    stored: dict[str, ShardTensor] = {}
    for shard in shards:
        path = folder / shard
        if not path.exists():
            raise CheckpointError(str(path), f"shard is missing although {INDEX} names it", AGAIN)
        for name, tensor in read_header(path).items():
            if name in stored:
                other = stored[name].path.name
                message = f"tensor {quoted(name)} is in shard {other} too"
                raise CheckpointError(str(path), message, "remove one of them")
            stored[name] = tensor
    remarks = [] if weight_map is None else _disagreements(index, weight_map, stored)
    unread = [name for name in _files(folder) if name not in shards]
    if unread:
        more = f" and {len(unread) - 1} more are" if len(unread) > 1 else " is"
        reason = f"there is a {SINGLE if weight_map is None else INDEX}"
        remarks.append(Remark(str(folder), f"{unread[0]}{more} not read because {reason}"))
    return stored, remarks


def _files(folder: Path) -> list[str]:
    """The files that look like shards of the checkpoint; of Mistral's own layout (consolidated...) none does."""
    names = (path.name for path in folder.iterdir())
    return sorted(name for name in names if name == SINGLE or SHARD.fullmatch(name))


def _with_their_sets(folder: Path, named: set[str]) -> list[str]:
    """The files that an index names, and those beside them that are of the same number of shards."""
    totals = {match[2] for name in named if (match := SHARD.fullmatch(name))}
    others = {name for name in _files(folder) if (match := SHARD.fullmatch(name)) and match[2] in totals}
    return sorted(named | others)


def _shards(folder: Path) -> list[str]:
    """The files that make up a checkpoint without an index."""
    names = _files(folder)
    if not names:
        raise _nothing_to_read(folder)
    if SINGLE in names:
        return [SINGLE]
    numbers: dict[int, str] = {}
    totals = set()
    for name in names:
        number, total = map(int, SHARD.fullmatch(name).groups())  # type: ignore[union-attr]
        if number in numbers:
            raise CheckpointError(
                str(folder), f"{numbers[number]} and {name} are the same shard", "remove one"
            )
        numbers[number] = name
        totals.add(total)
    if len(totals) > 1:
        message = f"shards of several sets, {names[0]} and {names[-1]}, and no {INDEX}"
        raise CheckpointError(str(folder), message, "remove those that do not belong to the model")
    total = totals.pop()
    missing = next(number for number in count(1) if number not in numbers)
    if missing <= total:
        n_more = total - len(numbers) - 1
        more = f" and {n_more} more" if n_more > 0 else ""
        raise CheckpointError(str(folder), f"shard {missing} of {total}{more} is missing", AGAIN)
    if len(numbers) > total:
        raise CheckpointError(str(folder), f"{len(numbers)} shards of a set of {total}", "remove the others")
    return names


def _disagreements(
    index: Path, weight_map: Mapping[str, str], stored: Mapping[str, ShardTensor]
) -> list[Remark]:
    """What the index says of the places of tensors that the headers do not."""
    faults = (
        ("names {} that no shard holds", [name for name in weight_map if name not in stored]),
        ("does not name {} that the shards hold", [name for name in stored if name not in weight_map]),
        (
            "says another shard for {} than the one that holds it",
            [
                name
                for name, shard in weight_map.items()
                if name in stored and stored[name].path.name != shard
            ],
        ),
    )
    remarks = []
    for text, names in faults:
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            remarks.append(Remark(str(index), text.format(f"tensor {quoted(names[0])}{more}")))
    return remarks


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
    if any(name.endswith((".bin", ".pt", ".pth", ".ckpt")) for name in names):
        message = "only pickled weights, which could run code"
        return CheckpointError(str(folder), message, "convert them to safetensors first")
    remedy = "give the folder of a Hugging Face checkpoint"
    return CheckpointError(str(folder), f"neither {INDEX} nor {SINGLE}", remedy)
