"""A finished GGUF file, ours or another program's: its keys, its tensors, and its weights as a `ModelSource`."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
from gguf import GGUFValueType

from quantize.containers.gguf import GGUFTensor, read_container
from quantize.containers.gguf_parts import Place, place_of, read_others
from quantize.containers.keys import KeyValue, elements
from quantize.containers.untrusted import quoted
from quantize.decoding import can_decode, decode_stored
from quantize.exceptions import DecodeError, GGUFError
from quantize.families import families_of, known_keys
from quantize.families.keys import Value, hparams_of
from quantize.hparams import Hparams
from quantize.sources.fingerprint import SeenFiles, hashed
from quantize.tensors import Array, Rows, TensorSpec, names_experts

__all__ = ["GGUFFile", "GGUFPart", "GGUFTensor"]

ROUTERS = (".ffn_gate_inp.weight", ".ffn_gate_inp_shexp.weight")

NO_MODEL = "is this a model?"
TOKENS = "tokenizer.ggml.tokens"


@dataclass(frozen=True)
class GGUFPart:
    """One of the files in which a model lies: most models have one."""

    path: Path
    n_bytes: int
    alignment: int


class GGUFFile:
    """An open GGUF file as a `ModelSource`; quantized tensors are handed out decoded to float32.

    Of a file that is split, the first part stands for all. A pickled file is opened again from its path.

    Raises:
        GGUFError: not a GGUF file, truncated, or damaged, as may be each part; on construction or on reading.
    """

    kind: Literal["gguf"] = "gguf"

    def __init__(self, path: Path | str, any_part: bool = False) -> None:
        """Read keys and tensor infos; no weight is touched.

        Args:
            path: the file, or the first part of a file that is split.
            any_part: take a later part, too, for itself: its own keys, and the tensors that lie in it.
        """
        self.path = Path(path)
        self._seen = SeenFiles([self.path], GGUFError)
        first = read_container(self.path)
        place = place_of(self.path, first.keys)
        self.place: Place | None = place if any_part and place and place.no else None
        """What the file is, where it is a later part for itself."""
        containers = [(self.path, first)]
        if place is not None and self.place is None:
            containers += read_others(self.path, first, place, self._seen.see)
        self.parts = tuple(GGUFPart(path, read.n_bytes, read.alignment) for path, read in containers)
        """The files in which the tensors lie."""
        self.n_bytes = sum(part.n_bytes for part in self.parts)
        self.keys, self.types = dict(first.keys), dict(first.types)
        self._exact = first.exact
        self.tensors = {
            name: _with_all_axes(replace(stored, part=i))
            for i, (_, read) in enumerate(containers)
            for name, stored in read.tensors.items()
        }
        self._bytes_read = 0
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type[GGUFFile], tuple[Path, bool], dict[str, SeenFiles]]:
        # The files that were pickled.
        return GGUFFile, (self.path, self.place is not None), {"_seen": self._seen}

    @property
    def label(self) -> str:
        """The path."""
        return str(self.path)

    @property
    def n_read(self) -> int:
        """Reads that go best at once."""
        return 1

    @property
    def bytes_read(self) -> int:
        """Bytes of weights read so far, from all parts and by all threads."""
        return self._bytes_read

    @property
    def arch(self) -> str:
        """`general.architecture`.

        Raises:
            GGUFError: the file does not say it.
        """
        arch = self.keys.get("general.architecture")
        if arch is None:
            raise self._fault("key 'general.architecture' is missing", NO_MODEL)
        if not isinstance(arch, str):
            raise self._fault(f"key 'general.architecture' is {quoted(arch)}, a text is expected")
        return arch

    def arch_keys(self) -> Sequence[KeyValue]:
        """The `{arch}.*` keys in file order.

        Raises:
            GGUFError: the file names no architecture.
        """
        prefix = f"{self.arch}."
        return [kv for kv in self.key_values() if kv.key.startswith(prefix)]

    def key_values(self) -> list[KeyValue]:
        """All keys in file order, with their types; texts are those of the file to the byte (`exact_bytes`)."""
        return [
            self._exact.get(name) or KeyValue(name, value, *self.types[name])
            for name, value in self.keys.items()
        ]

    def fingerprint(self) -> str:
        """A hash of what lies where in the file, and of the file or its parts (`SeenFiles.fingerprint`).

        Raises:
            GGUFError: it cannot be read any more.
            ModelChangedError: it is no longer the one that was opened.
        """
        tensors = [(spec.name, spec.shape, spec.qtype.name) for spec in self.specs()]
        return hashed([json.dumps(tensors).encode(), *self._seen.fingerprint()])

    def refuse_changed(self) -> None:
        """See `ModelSource.refuse_changed`."""
        self._seen.refuse_changed()

    @property
    def is_vocabulary(self) -> bool:
        """Whether the file holds a tokenizer and no weights, as llama.cpp's converter writes it by `--vocab-only`."""
        return not self.tensors and elements(self.keys.get(TOKENS)) is not None

    def refuse_empty(self) -> None:
        """Refuse a file without weights where they are needed.

        Raises:
            GGUFError: there are none.
        """
        if not self.tensors:
            what = " (a vocabulary only)" if self.is_vocabulary else ""
            raise self._fault(f"holds no tensors{what}", "give a model with its weights")

    def specs(self) -> Sequence[TensorSpec]:
        """All tensors in file order."""
        return [stored.spec for stored in self.tensors.values()]

    def row_step(self, spec: TensorSpec) -> int:
        """Rows are stored one by one."""
        return 1

    def read(self, spec: TensorSpec, xid: int = 0, rows: Rows | None = None) -> Array:
        """One matrix of a stack or some of its rows; see `TensorSource.read`.

        Raises:
            DecodeError: blocks of this type cannot be decoded here.
            GGUFError: the file cannot be read any more.
        """
        blocks = self.read_blocks(spec, xid, rows)
        if not can_decode(spec.qtype):
            place = f"{self.path}: tensor {quoted(spec.name)}"
            raise DecodeError(place, f"tensor type {spec.qtype.name} cannot be decoded here")
        return decode_stored(blocks, spec.qtype, spec.n_per_row)

    def read_blocks(self, spec: TensorSpec, xid: int = 0, rows: Rows | None = None) -> Array:
        """The stored bytes of a matrix or some of its rows: uint8 [n_rows, spec.row_bytes].

        Raises:
            GGUFError: the file cannot be read any more.
            ModelChangedError: it is no longer the one that was opened.
            IndexError: there is no such matrix or row.
        """
        first, last = rows or (0, spec.n_row)
        if not 0 <= xid < spec.n_matrix or not 0 <= first < last <= spec.n_row:
            raise IndexError(f"{spec.name} has {spec.n_matrix} matrices of {spec.n_row} rows: {xid}, {rows}")
        blocks = np.empty((last - first, spec.row_bytes), np.uint8)
        self.fill(spec, xid, (first, last), blocks)
        return blocks

    def fill(self, spec: TensorSpec, xid: int, rows: Rows, out: Array) -> None:
        """Read the same into `out`, uint8 [n_rows, spec.row_bytes], C-contiguous; see `read_blocks`."""
        row_bytes, left = spec.row_bytes, out.data.cast("B")
        stored = self.tensors[spec.name]
        path = self.parts[stored.part].path
        place = f"{path}: {quoted(spec.name)}"
        try:
            with path.open("rb", buffering=0) as file:
                file.seek(stored.offset + (xid * spec.n_row + rows[0]) * row_bytes)
                while left and (n_read := file.readinto(left)):
                    left = left[n_read:]
                self._seen.confirm(path, file.fileno())
        except OSError as error:
            raise GGUFError(place, f"cannot be read: {error.strerror}") from None
        if left:
            raise GGUFError(place, "ends before its size says", "see to the disk")
        with self._lock:
            self._bytes_read += out.nbytes

    @cached_property
    def hparams(self) -> Hparams:
        """The model's dimensions, from its keys; those of a vocabulary only are of the model that it is for.

        Raises:
            GGUFError: a key that the model cannot do without is missing, or of another type.
        """
        arch = self.arch
        table = known_keys(arch)
        values: dict[str, Value] = {}
        for row in table.values():
            name = f"{arch}.{row.name}"
            if name in self.keys and row.field:
                values[row.name] = self._value(name, row.type)
            elif row.is_required:
                raise self._fault(f"key {quoted(name)} is missing", NO_MODEL)
        if values["attention.head_count"] == 0:
            raise self._fault(f"{arch}.attention.head_count is 0", NO_MODEL)
        rope_neox = any(family.rope_neox for family in families_of(arch))
        return hparams_of(arch, table.values(), values, self._n_vocab(), rope_neox=rope_neox)

    def _n_vocab(self) -> int:
        """Rows of the token embedding; tokens of the vocabulary, where the file holds nothing else."""
        if self.is_vocabulary:
            return len(self.keys[TOKENS])
        embedding = self.tensors.get("token_embd.weight")
        if embedding is None:
            raise self._fault("token_embd.weight is missing", NO_MODEL)
        return embedding.spec.n_row

    def _value(self, name: str, kind: GGUFValueType) -> Value:
        """The value of a key, if it is what keys of this type hold."""
        value = self.keys[name]
        if kind == GGUFValueType.UINT32:
            if type(value) is not int or not 0 <= value < 2**32:
                raise self._fault(f"key {quoted(name)} is {quoted(value)}, one size is expected")
            return value
        if kind == GGUFValueType.FLOAT32:
            if type(value) not in (int, float) or not math.isfinite(value):
                raise self._fault(f"key {quoted(name)} is {quoted(value)}, a number is expected")
            return float(value)
        expected, words = (bool, "a switch") if kind == GGUFValueType.BOOL else (str, "a text")
        if type(value) is not expected:
            raise self._fault(f"key {quoted(name)} is {quoted(value)}, {words} is expected")
        checked: Value = value
        return checked

    def _fault(self, message: str, remedy: str = "") -> GGUFError:
        return GGUFError(str(self.path), message, remedy)


def _with_all_axes(stored: GGUFTensor) -> GGUFTensor:
    """The tensor with the axis of its experts, which ggml's writer leaves out where there is only one expert.

    llama.cpp's converter writes (1, n_ff, n_embd), and llama-quantize makes (n_ff, n_embd) of it (ggml_n_dims); their
    loader takes either. The gate of shared experts has one row in any model.
    """
    spec = stored.spec
    n_axes = 2 if spec.name.endswith(ROUTERS) else 3 if names_experts(spec.name) else 0
    if not spec.name.endswith(".weight") or len(spec.shape) != n_axes - 1:
        return stored
    return replace(stored, spec=replace(spec, shape=(1, *spec.shape)))
