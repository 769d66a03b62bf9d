"""A Hugging Face checkpoint as a source of tensors: one matrix, or some of its rows, at a time."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from quantize.containers.shard_index import ShardTensor, index_shards
from quantize.containers.untrusted import quoted, read_json, refuse_foreign_links
from quantize.exceptions import CheckpointError
from quantize.families import Family, family_of
from quantize.families.binding import QTYPES, Binding, bind, embedding_rows
from quantize.families.config import complete_config, read_hparams, shape_dims
from quantize.hparams import Hparams
from quantize.tensors import NUMPY_TYPES, Array, QType, Rows, TensorSpec

__all__ = ["Checkpoint", "open_checkpoint"]

STORED_TYPES = {name: NUMPY_TYPES[qtype] for name, qtype in QTYPES.items()}


def open_checkpoint(path: Path | str, family: Family | None = None) -> Checkpoint:
    """Open the folder of a Hugging Face checkpoint; reads config, index and headers, but no weight.

    Raises:
        CheckpointError: the folder is incomplete, damaged, inconsistent, or of an architecture nobody here knows.
    """
    try:
        return Checkpoint(path, family)
    except OSError as failure:
        raise CheckpointError(f"{path}: cannot be read: {failure.strerror or quoted(failure)}") from None


class Checkpoint:
    """The tensors of a Hugging Face folder under their GGUF names (a `TensorSource`).

    Rows of q and k come permuted as arch `llama` wants them, experts one by one from either layout, gate and up parted,
    transposed matrices turned. A read takes exactly the bytes that it needs from the file into a fresh array: nothing
    is mapped, nothing is kept.
    """

    def __init__(self, path: Path | str, family: Family | None = None) -> None:
        """As `open_checkpoint`; `family` takes the place of the one that config.json names."""
        self.path = Path(path)
        refuse_foreign_links(self.path)
        raw = read_json(self.path / "config.json")
        self.family = family or family_of(raw)
        self.config: dict[str, Any] = complete_config(self.family, raw)
        """config.json with transformers' defaults for missing keys and `rope_parameters` in its new form."""

        stored, remarks = index_shards(self.path)
        rows = embedding_rows(self.family, stored)
        vocab_size = self.config.get("vocab_size")
        self._hparams, more = read_hparams(self.family, self.config, rows or 1)
        dims = shape_dims(self.family, self.config, self._hparams)
        bindings, ignored = bind(self.family, dims, stored)
        self._bindings = {binding.spec.name: binding for binding in bindings}
        self._computed = self._compute()
        self._specs = [binding.spec for binding in bindings] + [
            TensorSpec(name, values.shape, QType.F32) for name, values in self._computed.items()
        ]
        remarks += more + self._remarks(ignored)
        if vocab_size != rows:
            remarks.append(f"the embedding has {rows} rows, config.json says vocab_size {quoted(vocab_size)}")
        self.remarks: tuple[str, ...] = tuple(remarks)
        """What a careful reader wants to be told: fallbacks taken, tensors ignored, settings a GGUF cannot say."""

        self._bytes_read = 0
        self._lock = threading.Lock()

    @property
    def hparams(self) -> Hparams:
        """The model's dimensions and switches; `n_vocab` counts the rows of the embedding."""
        return self._hparams

    @property
    def n_bytes(self) -> int:
        """Stored bytes of all tensors that `specs` names: what a pass over the model has to read."""
        return sum(binding.n_bytes for binding in self._bindings.values())

    @property
    def bytes_read(self) -> int:
        """Bytes of weights read from the shards so far, by all threads."""
        return self._bytes_read

    def specs(self) -> Sequence[TensorSpec]:
        """All tensors in the order of the family's declaration."""
        return self._specs

    def row_step(self, spec: TensorSpec) -> int:
        """Rows come in groups of so many: a range between multiples of it costs its own bytes and no more.

        1 for most tensors, head_dim for permuted ones; all rows where only a whole matrix can be read.
        """
        binding = self._bindings.get(spec.name)
        if binding is None or len(spec.shape) == 1 or _whole(binding):
            return spec.n_row
        return spec.n_row // binding.n_heads if binding.n_heads else 1

    def read(self, spec: TensorSpec, xid: int = 0, rows: Rows | None = None) -> Array:
        """The matrix of one expert, or some of its rows: see `TensorSource.read`.

        Raises:
            CheckpointError: the shard cannot be read any more, or became shorter since it was opened.
            IndexError: there is no such expert or row.
        """
        first, last = rows or (0, spec.n_row)
        if not 0 <= xid < spec.n_matrix or not 0 <= first < last <= spec.n_row:
            raise IndexError(f"{spec.name} has {spec.n_matrix} experts of {spec.n_row} rows: {xid}, {rows}")
        if spec.name in self._computed:
            return self._computed[spec.name].reshape(1, -1).copy()
        binding = self._bindings[spec.name]
        if len(spec.shape) == 1:
            values = self._read_vector(binding)
        elif _whole(binding):
            values = self._read_turned(binding, xid)[first:last]
        else:
            values = self._read_rows(binding, xid, first, last)
        mixed = binding.spec.qtype is QType.F32 and values.dtype != np.float32
        return np.ascontiguousarray(_to_f32(values) if mixed else values)

    def _read_vector(self, binding: Binding) -> Array:
        """[1, n]: a norm, or a bias whose elements may be permuted."""
        one = binding.stored[0]
        values = self._load(one, 0, one.shape)
        if binding.n_heads:
            values = _neighbours(values.reshape(-1, 1), binding.n_heads)
        return values.reshape(1, -1)

    def _read_rows(self, binding: Binding, xid: int, first: int, last: int) -> Array:
        """[last - first, n_per_row], from a matrix stored by rows: only the bytes of these rows, or of their heads."""
        spec, source = binding.spec, binding.source
        step = self.row_step(spec)
        low, high = first // step * step, -(-last // step) * step
        one, matrix = _stored_matrix(binding, xid)
        n_matrix = spec.n_row * source.n_parts
        if source.by_turns:
            start = (matrix * n_matrix + low * source.n_parts) * spec.n_per_row
            values = self._load(one, start, (high - low, source.n_parts, spec.n_per_row))[:, source.part]
        else:
            start = (matrix * n_matrix + source.part * spec.n_row + low) * spec.n_per_row
            values = self._load(one, start, (high - low, spec.n_per_row))
        if binding.n_heads:
            values = _neighbours(values, (high - low) // step)[first - low : last - low]
        return values

    def _read_turned(self, binding: Binding, xid: int) -> Array:
        """[n_row, n_per_row] of a matrix whose rows do not lie together: it is read whole, and a view is given."""
        spec, source = binding.spec, binding.source
        sizes = [spec.n_row, spec.n_per_row]
        sizes[source.axis] *= source.n_parts
        one, matrix = _stored_matrix(binding, xid)
        shape = (sizes[1], sizes[0]) if source.transposed else (sizes[0], sizes[1])
        values = self._load(one, matrix * sizes[0] * sizes[1], shape)
        values = values.T if source.transposed else values
        if source.n_parts > 1:
            n = sizes[source.axis] // source.n_parts
            part = source.part
            taken = slice(part, None, source.n_parts) if source.by_turns else slice(part * n, (part + 1) * n)
            values = values[:, taken] if source.axis == -1 else values[taken]
        return _neighbours(values, binding.n_heads) if binding.n_heads else values

    def _load(self, one: ShardTensor, start: int, shape: tuple[int, ...]) -> Array:
        """The elements from `start` on, counted in elements of the stored tensor; a file handle for every call."""
        values: Array = np.empty(shape, STORED_TYPES[one.dtype])
        left = values.data.cast("B")
        try:
            with one.path.open("rb", buffering=0) as file:
                file.seek(one.start + start * values.itemsize)
                while left:
                    n_bytes = file.readinto(left)
                    if not n_bytes:
                        raise CheckpointError(
                            f"{one.path}: became shorter while it was read; download it again"
                        )
                    left = left[n_bytes:]
        except OSError as failure:
            raise CheckpointError(f"{one.path}: cannot be read: {failure.strerror}") from None
        with self._lock:
            self._bytes_read += values.nbytes
        return values

    def _compute(self) -> dict[str, Array]:
        made = ((computed.name, computed.make(self._hparams)) for computed in self.family.computed)
        return {name: values for name, values in made if values is not None}

    def _remarks(self, ignored: list[str]) -> list[str]:
        found = []
        if ignored:
            found.append(f"{len(ignored)} stored tensors are ignored, {quoted(ignored[0])} among them")
        if "output.weight" not in self._bindings and not self.config.get("tie_word_embeddings"):
            found.append(
                "no output matrix is stored although config.json does not tie it: the token embedding is used"
            )
        mixed = [name for name, one in self._bindings.items() if len({part.dtype for part in one.stored}) > 1]
        if mixed:
            found.append(
                f"{len(mixed)} tensors have experts of different types and are read as F32: {mixed[0]}"
            )
        return found


def _whole(binding: Binding) -> bool:
    """The rows do not lie together, so that the matrix can only be read whole."""
    return binding.source.transposed or (binding.source.n_parts > 1 and binding.source.axis == -1)


def _stored_matrix(binding: Binding, xid: int) -> tuple[ShardTensor, int]:
    """The stored tensor of an expert, and the expert's place in it."""
    return (binding.stored[xid], 0) if binding.source.per_expert else (binding.stored[0], xid)


def _neighbours(values: Array, n_heads: int) -> Array:
    """Rows of rotary halves -> rows of rotary pairs (`conversion/llama.py`: LlamaModel.permute).

    values [n_heads * head_dim, n]: new_row[h*hd + 2*i + s] = old_row[h*hd + s*hd/2 + i].
    """
    n_row, n = values.shape
    halves = values.reshape(n_heads, 2, n_row // n_heads // 2, n)
    return halves.swapaxes(1, 2).reshape(n_row, n)


def _to_f32(values: Array) -> Array:
    if values.dtype == np.uint16:  # the bits of bfloat16 are the upper half of those of float32
        return np.left_shift(values, np.uint32(16), dtype=np.uint32).view(np.float32)
    return values.astype(np.float32)
