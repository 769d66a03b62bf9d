"""A Hugging Face checkpoint as a source of tensors: one matrix, or some of its rows, at a time."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from quantize.containers.keys import KeyValue
from quantize.containers.shard_index import ShardTensor, index_shards
from quantize.containers.untrusted import quoted, read_json, refuse_foreign_links
from quantize.decoding import decode_stored, to_f32
from quantize.exceptions import CheckpointError, ModelChangedError
from quantize.families import Family, family_of
from quantize.families.binding import Binding, Cut, bind, embedding_rows, stored_qtype
from quantize.families.config import complete_config, read_config, shape_dims, text_config
from quantize.families.stored_names import text_tensors
from quantize.hparams import Hparams
from quantize.sources.changes import changed
from quantize.sources.checkpoint_files import BESIDE_WEIGHTS, is_as_stored, layout_of
from quantize.sources.fingerprint import SeenFiles, hashed
from quantize.sources.fp8 import Fp8Tensor, with_scales
from quantize.sources.hub import local_path, name_of, reader_of
from quantize.sources.repacking import neighbours, repacked
from quantize.telling import Remark
from quantize.tensors import Array, QType, Rows, TensorSpec

__all__ = ["Checkpoint", "open_checkpoint"]


def open_checkpoint(path: Path | str, family: Family | None = None) -> Checkpoint:
    """Open the folder of a Hugging Face checkpoint, or one on the Hub; reads config, index and headers, no weight.

    Raises:
        CheckpointError: the folder is incomplete, damaged, inconsistent, or of an unknown architecture.
    """
    try:
        return Checkpoint(local_path(path), family)
    except OSError as failure:
        message = f"cannot be read: {failure.strerror or quoted(failure)}"
        raise CheckpointError(str(path), message) from None


class Checkpoint:
    """The tensors of a Hugging Face folder under their GGUF names (a `ModelSource`).

    Rows of q and k come permuted as arch `llama` wants them, experts one by one from either layout, gate and up parted,
    transposed matrices turned. A read takes exactly the bytes that it needs from the file into a fresh array: nothing
    is mapped, nothing is kept. A pickled checkpoint is opened again where it lay.
    """

    kind: Literal["checkpoint"] = "checkpoint"

    def __init__(self, path: Path | str, family: Family | None = None) -> None:
        """As `open_checkpoint`; `family` takes the place of the family that config.json names."""
        self.path = Path(path)
        self._given_family = family
        refuse_foreign_links(self.path)
        self._beside = SeenFiles((self.path / name for name in BESIDE_WEIGHTS), CheckpointError)
        self._shards = SeenFiles(self.path.glob("*.safetensors"), CheckpointError)
        raw = text_config(read_json(self.path / "config.json"))
        self.family = family or family_of(raw)
        self.config: dict[str, Any] = complete_config(self.family, raw)
        """config.json with transformers' defaults for missing keys and `rope_parameters` in its new form."""

        stored, remarks = index_shards(self.path)
        self.stored, others = text_tensors(stored, self.config)
        """The tensors of the shards by the names that the family has for them."""

        if self.family.nextn_apart is not None:
            self.stored, self.config = self.family.nextn_apart.as_layers(self.stored, self.config)
        if self.config.get("tie_word_embeddings"):
            tied = [name for name in self.family.ignored_when_tied if name in self.stored]
            others += [self.stored.pop(name).name for name in tied]
        self._shards.keep(tensor.path for tensor in self.stored.values())
        self._layout = layout_of(self.stored)
        self.stored = with_scales(self.stored, self.config)
        rows = embedding_rows(self.family, self.stored)
        self._facts = read_config(self.family, self.config, rows or 1)
        dims = shape_dims(self.family, self.config, self.hparams)
        bindings, ignored = bind(self.family, dims, self.stored)
        self._bindings = {binding.spec.name: binding for binding in bindings}
        self._computed = self._compute()
        self._specs = [binding.spec for binding in bindings] + [
            TensorSpec(name, values.shape, QType.F32) for name, values in self._computed.items()
        ]
        remarks += [*self._facts.remarks, *self._remarks(others + ignored)]
        vocab_size = self.config.get("vocab_size")
        if vocab_size != rows:
            message = f"the embedding has {rows} rows, config.json says vocab_size {quoted(vocab_size)}"
            remarks.append(Remark(str(self.path), message))
        self.remarks: tuple[Remark, ...] = tuple(remarks)
        """Facts that a careful reader wants to know: fallbacks taken, tensors ignored, settings a GGUF cannot say."""

        self._reader = reader_of(self.path)

    def __reduce__(self) -> tuple[Any, ...]:
        if (name := name_of(self.path)) is not None:  # of one commit, which is the same on any machine
            return _opened_again, (name, self.path, self._given_family)
        seen = {"_shards": self._shards, "_beside": self._beside}  # those of the one that was pickled
        return Checkpoint, (self.path, self._given_family), seen

    @property
    def label(self) -> str:
        """The folder."""
        return str(self.path)

    @property
    def hparams(self) -> Hparams:
        """The model's dimensions and switches; `n_vocab` counts the rows of the embedding."""
        return self._facts.hparams

    @property
    def arch(self) -> str:
        """general.architecture, as llama.cpp calls it."""
        return self.family.arch

    def arch_keys(self) -> Sequence[KeyValue]:
        """The `{arch}.*` keys that llama.cpp's converter writes, in its order."""
        return self._facts.keys

    def fingerprint(self) -> str:
        """A hash of the config, of where each tensor lies in the shards, and of these (`ShardReader.identity`).

        Tokenizer and model card are not part of it: what becomes of them, tokens and keys, is known to whoever asks.

        Raises:
            CheckpointError: a shard cannot be read any more.
            ModelChangedError: a shard is no longer the one that was opened.
        """
        config = json.dumps(self.config, sort_keys=True, default=str).encode()
        return hashed([config, self._layout, *self._reader.identity(self._shards)])

    def refuse_changed(self) -> None:
        """See `ModelSource.refuse_changed`; of a changed config or tokenizer, the weights that were read are good.

        Raises:
            ModelChangedError: a shard is no longer the one that was opened.
            CheckpointError: neither is a file beside the shards.
        """
        self._shards.refuse_changed()
        try:
            self._beside.refuse_changed()
        except ModelChangedError as changed:
            raise CheckpointError(changed.place, changed.message, changed.remedy) from None

    @property
    def n_bytes(self) -> int:
        """Stored bytes of all tensors that `specs` names: what a pass over the model has to read."""
        return sum(binding.n_bytes for binding in self._bindings.values())

    @property
    def bytes_read(self) -> int:
        """Bytes of weights read from the shards so far, by all threads."""
        return self._reader.bytes_read

    @property
    def n_read(self) -> int:
        """Reads that go best at once: more than one where each waits for an answer from afar."""
        return self._reader.n_read

    def specs(self) -> Sequence[TensorSpec]:
        """All tensors in the order of the family's declaration."""
        return self._specs

    def row_step(self, spec: TensorSpec) -> int:
        """Ranges of rows between multiples of this number are read without reading anything else.

        1 for most tensors, the rows of a head for permuted ones; all rows where only a whole matrix can be read.
        """
        binding = self._bindings.get(spec.name)
        if binding is None or len(spec.shape) == 1 or binding.is_scattered:
            return spec.n_row
        return spec.n_row // binding.n_heads if binding.n_heads else 1

    def read(self, spec: TensorSpec, xid: int = 0, rows: Rows | None = None) -> Array:
        """The matrix of one expert, or some of its rows: see `TensorSource.read`.

        Raises:
            CheckpointError: the shard cannot be read any more.
            ModelChangedError: it is no longer the one that was opened.
            IndexError: there is no such expert or row.
        """
        first, last = _checked(spec, xid, rows)
        if spec.name in self._computed:
            return self._computed[spec.name].reshape(1, -1).copy()
        binding = self._bindings[spec.name]
        if binding.source.mxfp4:
            return decode_stored(self.read_blocks(spec, xid, rows), spec.qtype, spec.n_per_row)
        if len(spec.shape) == 1:
            values = self._read_vector(binding)
        elif binding.is_scattered:
            values = self._read_turned(binding, xid)[first:last]
        else:
            values = self._read_rows(binding, xid, first, last)
        mixed = binding.spec.qtype is QType.F32 and values.dtype != np.float32
        values = changed(to_f32(values) if mixed else values, binding.source.change)
        return np.ascontiguousarray(values)

    def read_blocks(self, spec: TensorSpec, xid: int = 0, rows: Rows | None = None) -> Array:
        """The bytes of what `read` gives, or of MXFP4 decodes: uint8 [n_rows, spec.row_bytes]."""
        binding = self._bindings.get(spec.name)
        if binding is None or not binding.source.mxfp4:
            return self.read(spec, xid, rows).view(np.uint8)
        some = _checked(spec, xid, rows)
        codes, exponents = (
            self._load_rows(part, binding.cut, xid, some, part.n_bytes // math.prod(part.shape[:2]))
            for part in binding.stored
        )
        return repacked(codes, exponents)

    def fill(self, spec: TensorSpec, xid: int, rows: Rows, out: Array) -> None:
        """Read the same into `out`, C-contiguous: directly where the rows of a shard are those of the tensor."""
        binding = self._bindings.get(spec.name)
        if binding is None or not is_as_stored(binding):
            out[...] = self.read_blocks(spec, xid, rows)
            return
        first, _ = _checked(spec, xid, rows)
        stored, matrix = _stored_matrix(binding, xid)
        start = (matrix * binding.cut.n_stored + binding.cut.first + first) * spec.row_bytes
        self._reader.fill(out, stored.path, stored.start + start, self._shards)

    def _read_vector(self, binding: Binding) -> Array:
        """[1, n]: a norm, or a bias whose elements may be permuted."""
        stored, cut = binding.stored[0], binding.cut
        values = self._load(stored, 0, stored.shape)[cut.first :: cut.step][: binding.spec.n_per_row]
        if binding.n_heads:
            values = neighbours(values.reshape(-1, 1), binding.n_heads)
        return values.reshape(1, -1)

    def _read_rows(self, binding: Binding, xid: int, first: int, last: int) -> Array:
        """[last - first, n_per_row], from a matrix stored by rows: only the bytes of these rows, or of their heads."""
        spec, cut = binding.spec, binding.cut
        step = self.row_step(spec)
        low, high = first // step * step, -(-last // step) * step
        stored, matrix = _stored_matrix(binding, xid)
        values = self._load_rows(stored, cut, matrix, (low, high), spec.n_per_row)
        if binding.n_heads:
            values = neighbours(values, (high - low) // step)[first - low : last - low]
        return values

    def _load_rows(self, stored: ShardTensor, cut: Cut, matrix: int, rows: Rows, n_per_row: int) -> Array:
        """[n_rows, n_per_row]: of a stored matrix some of the rows that the tensor has of it."""
        first, last = rows
        start = matrix * cut.n_stored + first * cut.step
        if cut.step == 1:
            return self._load(stored, (start + cut.first) * n_per_row, (last - first, n_per_row))
        shape = (last - first, cut.step, n_per_row)
        return self._load(stored, start * n_per_row, shape)[:, cut.first]

    def _read_turned(self, binding: Binding, xid: int) -> Array:
        """[n_row, n_per_row] of a matrix whose rows do not lie together: it is read whole, and a view is given."""
        spec, cut = binding.spec, binding.cut
        sizes = [spec.n_row, spec.n_per_row]
        sizes[binding.axis] = cut.n_stored
        stored, matrix = _stored_matrix(binding, xid)
        shape = (sizes[1], sizes[0]) if binding.source.transposed else (sizes[0], sizes[1])
        values = self._load(stored, matrix * sizes[0] * sizes[1], shape)
        values = values.T if binding.source.transposed else values
        if binding.runs:
            return np.concatenate([values[run] for run in binding.runs])
        taken = slice(cut.first, cut.first + cut.step * spec.shape[binding.axis], cut.step)
        values = values[:, taken] if binding.axis == -1 else values[taken]
        return neighbours(values, binding.n_heads) if binding.n_heads else values

    def _load(self, stored: ShardTensor, start: int, shape: tuple[int, ...]) -> Array:
        """The elements from `start` on, counted in elements of the stored tensor."""
        return self._reader.load(stored, start, shape, self._shards)

    def _compute(self) -> dict[str, Array]:
        made = ((computed.name, computed.make(self.hparams)) for computed in self.family.computed)
        return {name: values for name, values in made if values is not None}

    def _remarks(self, ignored: list[str]) -> list[Remark]:
        remarks = []
        if ignored:
            message = f"{len(ignored)} stored tensors are ignored, {quoted(ignored[0])} among them"
            remarks.append(Remark(str(self.path), message))
        if "output.weight" not in self._bindings and not self.config.get("tie_word_embeddings"):
            message = "no output matrix is stored although config.json does not tie it"
            remarks.append(Remark(str(self.path), f"{message}: the token embedding is used"))
        mixed = [
            name
            for name, binding in self._bindings.items()
            if not binding.source.mxfp4 and len({stored_qtype(stored) for stored in binding.stored}) > 1
        ]
        n_fp8 = sum(isinstance(tensor, Fp8Tensor) for tensor in self.stored.values())
        if n_fp8:
            message = f"{n_fp8} tensors are FP8 with scales, and are read as the BF16 numbers nearest to them"
            remarks.append(Remark(str(self.path), message))
        if mixed:
            message = f"{len(mixed)} tensors have experts of different types and are read as F32: {mixed[0]}"
            remarks.append(Remark(str(self.path), message))
        return remarks


def _opened_again(name: str, path: Path, family: Family | None) -> Checkpoint:
    """A pickled model of the Hub: from the folder that stands for it, or from one that is made on this machine."""
    return open_checkpoint(path if path.is_dir() else name, family)


def _stored_matrix(binding: Binding, xid: int) -> tuple[ShardTensor, int]:
    """The stored tensor of an expert, and the expert's place in it."""
    return (binding.stored[xid], 0) if binding.source.per_expert else (binding.stored[0], xid)


def _checked(spec: TensorSpec, xid: int, rows: Rows | None) -> Rows:
    """The rows, all where they are None, if they and the matrix are there."""
    first, last = rows or (0, spec.n_row)
    if not 0 <= xid < spec.n_matrix or not 0 <= first < last <= spec.n_row:
        raise IndexError(f"{spec.name} has {spec.n_matrix} matrices of {spec.n_row} rows: {xid}, {rows}")
    return first, last
