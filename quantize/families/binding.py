"""A family's declaration laid over the tensors of a checkpoint: which stored numbers are which GGUF tensor."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from quantize.containers.shard_index import ShardTensor
from quantize.containers.untrusted import quoted
from quantize.exceptions import CheckpointError
from quantize.families.language import Family, Source, Tensor, evaluate
from quantize.tensors import QType, TensorSpec

__all__ = ["QTYPES", "Binding", "Cut", "bind", "embedding_rows", "layers_of"]

REMEDIES = {
    "output.weight": "llama.cpp cannot tie it here: store a copy of the token embedding under this name"
}
"""What to do where a tensor is missing that other architectures can do without."""

QTYPES = {"BF16": QType.BF16, "F16": QType.F16, "F32": QType.F32}


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
    """A GGUF tensor and where its numbers are: one stored tensor, or one per expert."""

    spec: TensorSpec
    source: Source
    stored: tuple[ShardTensor, ...]
    cut: Cut
    axis: int  # of one matrix, along which it is cut: -2 or -1
    n_heads: int = 0  # in which the rows are permuted; 0 where they are not

    @property
    def n_bytes(self) -> int:
        """Stored bytes of this tensor (its share, where the stored one holds others, too)."""
        return sum(tensor.n_bytes for tensor in self.stored) * self.spec.shape[self.axis] // self.cut.n_stored


def bind(
    family: Family, dims: Mapping[str, int], stored: Mapping[str, ShardTensor]
) -> tuple[list[Binding], list[str]]:
    """Every tensor of the family in the checkpoint, and the stored names that are ignored on purpose.

    Raises:
        CheckpointError: a tensor or expert is missing, has a wrong shape or type, or a stored tensor is not read.
    """
    bindings: list[Binding] = []
    for tensor in family.tensors:
        for bid in layers_of(family, tensor, dims):
            bound = _bind(tensor, bid, dims, stored)
            if bound is not None:
                bindings.append(bound)
    read = {tensor.name for binding in bindings for tensor in binding.stored}
    names = {tensor.name: tensor for tensor in stored.values()}
    left = [name for name in names if name not in read]
    ignored = [name for name in left if name.endswith(family.ignored)]
    unread = [name for name in left if not name.endswith(family.ignored)]
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
    if tensor.where == "model":
        yield -1
        return
    first = evaluate(family.n_layer_dense_lead, dims)
    every = max(1, evaluate(family.moe_every, dims))
    for bid in range(dims["n_layer"]):
        has_experts = dims["n_expert"] > 0 and bid >= first and (bid + 1) % every == 0
        if tensor.where == "layer" or (tensor.where == "moe") == has_experts:
            yield bid


def _bind(
    tensor: Tensor, bid: int, dims: Mapping[str, int], stored: Mapping[str, ShardTensor]
) -> Binding | None:
    """Choose the layout of which most tensors are present, so that an error names what that layout lacks.

    None where an optional tensor is absent.
    """
    shape = tensor.sizes(dims)
    spec_name = tensor.name.format(bid=bid)
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
    for shard_tensor in tensors:
        if shard_tensor.shape != expected:
            raise CheckpointError(
                f"{shard_tensor.path}: tensor {quoted(shard_tensor.name)}",
                f"has shape {list(shard_tensor.shape)}, but config.json asks for {list(expected)}",
            )
    n_heads = dims[source.heads] if source.heads else 0
    return Binding(TensorSpec(spec_name, shape, _qtype(tensors)), source, tensors, cut, axis, n_heads)


def _names(source: Source, bid: int, n_expert: int) -> list[str]:
    if not source.per_expert:
        return [source.name.format(bid=bid)]
    return [source.name.format(bid=bid, xid=xid) for xid in range(n_expert)]


def _missing(source: Source, names: list[str], missing: list[str]) -> str:
    of_expert = f" (expert {names.index(missing[0])} of {len(names)})" if source.per_expert else ""
    more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
    return f"the checkpoint lacks tensor {quoted(missing[0])}{of_expert}{more}"


def _cut(spec_name: str, source: Source, size: int, dims: Mapping[str, int]) -> Cut:
    """The `size` rows or columns of a tensor within the stored ones."""
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


def _qtype(stored: tuple[ShardTensor, ...]) -> QType:
    """The common type of the stored tensors; where they differ, F32, which holds them all."""
    qtypes = set()
    for tensor in stored:
        if tensor.dtype not in QTYPES:
            raise CheckpointError(
                f"{tensor.path}: tensor {quoted(tensor.name)}",
                f"is stored as {tensor.dtype}",
                "only BF16, F16 and F32 can be read",
            )
        qtypes.add(QTYPES[tensor.dtype])
    return qtypes.pop() if len(qtypes) == 1 else QType.F32
