"""A family's declaration laid over the tensors of a checkpoint: which stored numbers are which GGUF tensor."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from quantize.containers.shard_index import ShardTensor
from quantize.containers.untrusted import quoted
from quantize.exceptions import CheckpointError
from quantize.families.language import Family, Source, Tensor, evaluate
from quantize.families.stored import MXFP4_PARTS
from quantize.tensors import QType, TensorSpec, same_shape

__all__ = ["QTYPES", "Binding", "Cut", "bind", "embedding_rows", "layers_of", "nextn_range", "stored_qtype"]

REMEDIES = {
    "output.weight": "llama.cpp cannot tie it here: store a copy of the token embedding under this name"
}
"""What to do where a tensor is missing that other architectures can do without."""

QTYPES = {"BF16": QType.BF16, "F16": QType.F16, "F32": QType.F32, "F8_E4M3": QType.BF16}
"""The types of stored numbers, and those in which they are read; FP8 has its scales beside it (`sources.fp8`)."""


@dataclass(frozen=True)
class Cut:
    """Which rows (or columns) of each stored matrix of `n_stored` are the tensor's: `first`, `first + step`, ..."""

    first: int
    step: int
    n_stored: int

    @property
    def is_whole(self) -> bool:
        """Whether they are all there are."""
        return self == Cut(0, 1, self.n_stored)


@dataclass(frozen=True)
class Binding:
    """A GGUF tensor and where its numbers are: one stored tensor, or one per expert; of MXFP4 codes and exponents."""

    spec: TensorSpec
    source: Source
    stored: tuple[ShardTensor, ...]
    cut: Cut
    axis: int  # of one matrix, along which it is cut: -2 or -1
    n_heads: int = 0  # in which the rows are permuted; 0 where they are not
    runs: tuple[slice, ...] = ()  # of stored rows, in the order of the tensor, where they do not lie together

    @property
    def n_bytes(self) -> int:
        """Stored bytes of this tensor (its share, where the stored one holds others, too)."""
        return sum(tensor.n_bytes for tensor in self.stored) * self.spec.shape[self.axis] // self.cut.n_stored

    @property
    def is_scattered(self) -> bool:
        """Whether the rows do not lie together, so that a matrix can only be read whole."""
        is_apart = bool(self.runs) or (self.axis == -1 and not self.cut.is_whole)
        return self.source.transposed or is_apart


def bind(
    family: Family, dims: Mapping[str, int], stored: Mapping[str, ShardTensor]
) -> tuple[list[Binding], list[str]]:
    """Every tensor of the family in the checkpoint, and the stored names that are ignored on purpose.

    Raises:
        CheckpointError: a tensor or expert is missing, has a wrong shape or type, or a stored tensor is not read.
    """
    bindings: list[Binding] = []
    absent = set(_absent_layers(family, dims, stored))
    for tensor in family.tensors:
        for bid in layers_of(family, tensor, dims):
            bound = None if bid in absent else _bind(tensor, bid, dims, stored)
            if bound is not None:
                bindings.append(bound)
    read = {tensor.name for binding in bindings for tensor in binding.stored}
    names = {tensor.name: tensor for tensor in stored.values()}
    left = [name for name in names if name not in read]
    ignored = [name for name in left if _is_ignored(family, name, dims)]
    unread = [name for name in left if not _is_ignored(family, name, dims)]
    if unread:
        more = f" and {len(unread) - 1} more" if len(unread) > 1 else ""
        raise CheckpointError(
            f"{names[unread[0]].path}",
            f"tensor {quoted(unread[0])}{more} would not be read: "
            f"{family.architectures[0]} with this config.json has no such tensor",
        )
    return bindings, ignored


def embedding_rows(family: Family, stored: Mapping[str, ShardTensor]) -> int | None:
    """Rows of the token embedding as stored, None where there is no such matrix."""
    for tensor in family.tensors:
        for source in tensor.sources if tensor.name == "token_embd.weight" else ():
            if source.name in stored and len(stored[source.name].shape) == 2:
                return stored[source.name].shape[0]
    return None


def layers_of(family: Family, tensor: Tensor, dims: Mapping[str, int]) -> Iterator[int]:
    """The layers in which a tensor of a family is; only -1, which is no layer, for a tensor of the whole model."""
    if not tensor.exists(dims):
        return
    if tensor.where == "model":
        yield -1
        return
    if tensor.where == "nextn":
        yield from nextn_range(dims)
        return
    first = evaluate(family.n_layer_dense_lead, dims)
    every = max(1, evaluate(family.moe_every, dims))
    attention_every = max(1, evaluate(family.attention_every, dims))
    for bid in range(dims["n_layer"]):
        has_experts = dims["n_expert"] > 0 and bid >= first and (bid + 1) % every == 0
        attends = (bid + 1) % attention_every == 0 or bid in nextn_range(dims)
        if tensor.where in (
            "layer",
            "moe" if has_experts else "dense",
            "attending" if attends else "recurrent",
        ):
            yield bid


def nextn_range(dims: Mapping[str, int]) -> range:
    """The layers at the end that predict further tokens (MTP)."""
    return range(dims["n_layer"] - dims.get("n_layer_nextn", 0), dims["n_layer"])


def _absent_layers(
    family: Family, dims: Mapping[str, int], stored: Mapping[str, ShardTensor]
) -> Iterator[int]:
    """The layers for further tokens of which nothing is stored: transformers saves none of them.

    Raises:
        CheckpointError: llama.cpp could not load a file without.
    """
    for bid in nextn_range(dims):
        in_layer = (tensor for tensor in family.tensors if tensor.where != "model")
        names = (source.name.format(bid=bid, xid=0) for tensor in in_layer for source in tensor.sources)
        if any(name in stored for name in names):
            continue
        if not family.nextn_may_lack:
            message = f"counts a layer {bid} that predicts further tokens, of which nothing is stored"
            remedy = "let it count none: llama.cpp loads no file without such a layer"
            raise CheckpointError("config.json", message, remedy)
        yield bid


def _is_ignored(family: Family, name: str, dims: Mapping[str, int]) -> bool:
    """Whether no file needs a stored tensor."""
    before, _, behind = family.ignored_layers.partition("{bid}")
    number = name.removeprefix(before).partition(behind)[0] if before and name.startswith(before) else ""
    is_layer = number.isdecimal() and len(number) < 10
    is_behind = is_layer and int(number) >= dims["n_layer"]
    return is_behind or name.endswith(family.ignored) or name.startswith(family.left_out)


def _bind(
    tensor: Tensor, bid: int, dims: Mapping[str, int], stored: Mapping[str, ShardTensor]
) -> Binding | None:
    """Choose the layout of which most tensors are present, so that an error names what that layout lacks.

    None where an optional tensor is absent.
    """
    shape = tensor.sizes(dims)
    spec_name = tensor.name.format(bid=bid)
    if tensor.optional and not tensor.sources:
        return None
    if min(shape) < 1:
        raise CheckpointError("config.json", f"{spec_name} would be empty: {list(shape)}")
    n_expert = shape[0] if tensor.has_experts else 1
    layouts = [(source, _names(source, bid, n_expert)) for source in tensor.sources]
    source, names = max(
        layouts, key=lambda layout: sum(name in stored for name in layout[1]) / len(layout[1])
    )
    missing = [name for name in names if name not in stored]
    if len(missing) == len(names) and tensor.optional:
        return None
    if missing:
        raise CheckpointError(spec_name, _missing(source, names, missing), REMEDIES.get(tensor.name, ""))
    tensors = tuple(stored[name] for name in names)
    axis = source.axis if len(shape) > 1 else -1
    cut = _cut(spec_name, source, shape[axis], dims)
    expected = _stored_shape(shape, source, cut, axis)
    for i, shard_tensor in enumerate(tensors):
        asked = _packed_shape(expected, i) if source.mxfp4 else expected
        if not same_shape(shard_tensor.shape, asked):
            raise CheckpointError(
                f"{shard_tensor.path}: tensor {quoted(shard_tensor.name)}",
                f"has shape {list(shard_tensor.shape)}, but config.json asks for {list(asked)}",
            )
    n_heads = dims[source.heads] if source.heads else 0
    qtype = QType.F32 if source.change else _qtype(tensors, source)
    runs = _runs(source, dims) if source.groups else ()
    return Binding(TensorSpec(spec_name, shape, qtype), source, tensors, cut, axis, n_heads, runs)


def _names(source: Source, bid: int, n_expert: int) -> list[str]:
    if source.mxfp4:
        return [source.name.format(bid=bid) + part for part in MXFP4_PARTS]
    if not source.per_expert:
        return [source.name.format(bid=bid)]
    return [source.name.format(bid=bid, xid=xid) for xid in range(n_expert)]


def _missing(source: Source, names: list[str], missing: list[str]) -> str:
    of_expert = f" (expert {names.index(missing[0])} of {len(names)})" if source.per_expert else ""
    more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
    return f"the checkpoint lacks tensor {quoted(missing[0])}{of_expert}{more}"


def _group_sizes(source: Source, dims: Mapping[str, int]) -> tuple[int, list[int]]:
    """The number of groups, and the rows of each part of a group."""
    return evaluate(source.groups, dims), [evaluate(rows, dims) for rows in source.group_parts]


def _runs(source: Source, dims: Mapping[str, int]) -> tuple[slice, ...]:
    """The rows of the parts that are taken, part by part and there group by group."""
    n_groups, sizes = _group_sizes(source, dims)
    starts = [(group * sum(sizes), part) for part in source.taken for group in range(n_groups)]
    firsts = [(start + sum(sizes[:part]), sizes[part]) for start, part in starts]
    return tuple(slice(first, first + n) for first, n in firsts)


def _cut(spec_name: str, source: Source, size: int, dims: Mapping[str, int]) -> Cut:
    """The `size` rows or columns of a tensor within the stored ones."""
    if source.groups:
        n_groups, sizes = _group_sizes(source, dims)
        if n_groups * sum(sizes[part] for part in source.taken) != size:
            raise CheckpointError("config.json", f"{spec_name} would not have {size} rows by its groups")
        return Cut(0, 1, n_groups * sum(sizes))
    if not source.rows:
        first = source.part if source.by_turns else source.part * size
        return Cut(first, source.n_parts if source.by_turns else 1, source.n_parts * size)
    n_stored = evaluate(source.of, dims)
    low, _, high = source.rows.partition(":")
    first = evaluate(low, dims) if low else 0
    last = evaluate(high, dims) if high else n_stored
    if not 0 <= first < last <= n_stored or last - first != size:
        message = f"{spec_name} would be {size} of {n_stored} rows, but {source.rows} are {first} to {last}"
        raise CheckpointError("config.json", message)
    return Cut(first, 1, n_stored)


def _stored_shape(shape: tuple[int, ...], source: Source, cut: Cut, axis: int) -> tuple[int, ...]:
    """The shape that each stored tensor must have, from the shape of the GGUF tensor."""
    sizes = list(shape)
    sizes[axis] = cut.n_stored
    if source.transposed:
        sizes[-2:] = sizes[:-3:-1]
    if source.flat:
        return (sizes[0] * sizes[1], sizes[2])
    return tuple(sizes[1:] if source.per_expert else sizes)


def _qtype(stored: tuple[ShardTensor, ...], source: Source) -> QType:
    """The common type of the stored tensors; where they differ, F32, which holds them all."""
    if source.mxfp4:
        return _packed_qtype(stored)
    qtypes = {stored_qtype(tensor) for tensor in stored}
    return qtypes.pop() if len(qtypes) == 1 else QType.F32


def _packed_shape(shape: tuple[int, ...], i: int) -> tuple[int, ...]:
    """Of MXFP4 matrices of a shape the codes (`i` 0) of each block of 32, or the exponents (1)."""
    size = QType.MXFP4.block_size
    n_block, left = divmod(shape[-1], size)
    if left:
        message = f"rows of {shape[-1]} weights do not divide into MXFP4 blocks of {size}"
        raise CheckpointError("config.json", message)
    return (*shape[:-1], n_block, size // 2) if i == 0 else (*shape[:-1], n_block)


def _packed_qtype(stored: tuple[ShardTensor, ...]) -> QType:
    for tensor in stored:
        if tensor.dtype != "U8":
            message = f"is stored as {tensor.dtype}, MXFP4 as U8"
            raise CheckpointError(f"{tensor.path}: tensor {quoted(tensor.name)}", message)
    return QType.MXFP4


def stored_qtype(tensor: ShardTensor) -> QType:
    """The type in which a stored tensor is read.

    Raises:
        CheckpointError: it cannot be read.
    """
    if tensor.dtype not in QTYPES:
        raise CheckpointError(
            f"{tensor.path}: tensor {quoted(tensor.name)}",
            f"is stored as {tensor.dtype}",
            "only BF16, F16 and F32 can be read",
        )
    return QTYPES[tensor.dtype]
