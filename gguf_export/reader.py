"""A finished GGUF file, ours or anybody's: its keys, its tensors, and its weights as a `TensorSource`.

Every count and length is checked against what is left of the file before anything is allocated, so that a damaged or
hostile header costs one line and no memory.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from gguf import GGUFValueType
from gguf.constants import GGML_QUANT_SIZES

from gguf_export.header import MAGIC, SCALARS
from quantize.encode import decode
from quantize.exceptions import GGUFError
from quantize.hparams import Hparams, RopeScaling
from quantize.tensors import NUMPY_TYPES, Array, QType, Rows, TensorSpec

MAX_DIMS = 4  # GGML_MAX_DIMS
MAX_STRING = 2**30  # bytes; ggml/src/gguf.cpp
MAX_HEADER = 2**30  # bytes; keys and infos of the largest known models take a few ten megabytes


@dataclass(frozen=True)
class StoredTensor:
    """Where one tensor lies."""

    spec: TensorSpec
    offset: int  # bytes from the start of the file
    n_bytes: int


class GGUFFile:
    """An open GGUF file as a `TensorSource`; quantized tensors are handed out decoded to float32.

    Raises:
        GGUFError: not a GGUF file, truncated, or damaged; on construction or on reading.
    """

    def __init__(self, path: Path) -> None:
        """Read keys and tensor infos; no weight is touched."""
        self.path = path
        try:
            self.n_bytes = path.stat().st_size
            with path.open("rb") as file:
                cursor = _Cursor(path, file, self.n_bytes)
                self.keys, self.tensors = _read_header(cursor)
        except OSError as error:
            raise GGUFError(f"{path}: cannot be read: {error.strerror}") from error
        self.bytes_read = 0

    def specs(self) -> Sequence[TensorSpec]:
        """All tensors in file order."""
        return [stored.spec for stored in self.tensors.values()]

    def read(self, spec: TensorSpec, xid: int = 0, rows: Rows | None = None) -> Array:
        """One expert's matrix or some of its rows; see `TensorSource.read`."""
        first, last = rows or (0, spec.n_row)
        blocks = self.read_blocks(spec, xid, (first, last))
        if spec.qtype in NUMPY_TYPES:
            return blocks.view(NUMPY_TYPES[spec.qtype])
        return decode(blocks, spec.qtype, spec.n_per_row)

    def read_blocks(self, spec: TensorSpec, xid: int, rows: Rows) -> Array:
        """The stored bytes of rows of one expert: uint8 [n_rows, bytes per row]."""
        stored = self.tensors[spec.name]
        row_bytes = stored.n_bytes // (spec.n_expert * spec.n_row)
        first, last = rows
        found = np.empty((last - first, row_bytes), np.uint8)
        with self.path.open("rb", buffering=0) as file:
            file.seek(stored.offset + (xid * spec.n_row + first) * row_bytes)
            wanted = found.data.cast("B")
            while wanted:
                n_read = file.readinto(wanted)
                if not n_read:
                    raise GGUFError(
                        f"{self.path}: {spec.name}: the file ends within this tensor; fetch it again"
                    )
                wanted = wanted[n_read:]
        self.bytes_read += found.nbytes
        return found

    @cached_property
    def hparams(self) -> Hparams:
        """The model's dimensions, from its keys.

        Raises:
            GGUFError: a key that the model cannot do without is missing.
        """
        arch = self._key("general.architecture")

        def key(name: str, *default: Any) -> Any:
            return self._key(f"{arch}.{name}", *default)

        n_embd, n_head = key("embedding_length"), key("attention.head_count")
        embedding = self.tensors.get("token_embd.weight")
        if embedding is None:
            raise GGUFError(f"{self.path}: token_embd.weight is missing; is this a model?")
        return Hparams(
            arch=arch,
            n_layer=key("block_count"),
            n_ctx_train=key("context_length"),
            n_embd=n_embd,
            n_ff=key("feed_forward_length"),
            n_head=n_head,
            n_head_kv=key("attention.head_count_kv", n_head),
            n_vocab=embedding.spec.n_row,
            head_dim=key("attention.key_length", n_embd // n_head),
            rms_norm_eps=key("attention.layer_norm_rms_epsilon"),
            rope_freq_base=key("rope.freq_base", 10000.0),
            rope_scaling=RopeScaling(
                kind=key("rope.scaling.type", "none"),
                factor=key("rope.scaling.factor", 1.0),
                n_ctx_orig=key("rope.scaling.original_context_length", 0),
                ext_factor=key("rope.scaling.yarn_ext_factor", None),
                attn_factor=key("rope.scaling.yarn_attn_factor", None),
                beta_fast=key("rope.scaling.yarn_beta_fast", None),
                beta_slow=key("rope.scaling.yarn_beta_slow", None),
            ),
            n_expert=key("expert_count", 0),
            n_expert_used=key("expert_used_count", 0),
            head_dim_explicit=f"{arch}.attention.key_length" in self.keys,
        )

    def _key(self, name: str, *default: Any) -> Any:
        if name not in self.keys and not default:
            raise GGUFError(f"{self.path}: key {name} is missing; is this a model?")
        return self.keys.get(name, *default)


class _Cursor:
    """Reads little-endian values and never past the end of the file."""

    def __init__(self, path: Path, file: BinaryIO, n_bytes: int) -> None:
        self.path, self._file, self._left = path, file, min(n_bytes, MAX_HEADER)

    def take(self, n_bytes: int) -> bytes:
        if n_bytes > self._left:
            raise GGUFError(f"{self.path}: truncated or damaged: the header runs past the end of the file")
        self._left -= n_bytes
        data = self._file.read(n_bytes)
        if len(data) != n_bytes:
            raise GGUFError(f"{self.path}: truncated: the header runs past the end of the file")
        return data

    def number(self, layout: str) -> Any:
        return struct.unpack(layout, self.take(struct.calcsize(layout)))[0]

    def count(self, least_bytes: int) -> int:
        """A count of things that take at least `least_bytes` each."""
        number: int = self.number("<Q")
        if number * least_bytes > self._left:
            raise GGUFError(f"{self.path}: truncated or damaged: {number} entries do not fit into the file")
        return number

    def string(self) -> str:
        n_bytes = self.count(1)
        if n_bytes > MAX_STRING:
            raise GGUFError(f"{self.path}: damaged: a string of {n_bytes} bytes")
        # Token texts of byte-level vocabularies are valid UTF-8; what is not is kept readable, never refused.
        return self.take(n_bytes).decode("utf-8", "replace")

    def position(self) -> int:
        return self._file.tell()

    def value(self, kind: int) -> Any:
        if kind == GGUFValueType.STRING:
            return self.string()
        if kind == GGUFValueType.ARRAY:
            sub_type = self.number("<i")
            if sub_type == GGUFValueType.STRING:
                return [self.string() for _ in range(self.count(8))]
            layout = self._layout(sub_type)
            size = struct.calcsize(layout)
            n = self.count(size)
            return list(struct.unpack(f"<{n}{layout[1:]}", self.take(n * size)))
        return self.number(self._layout(kind))

    def _layout(self, kind: int) -> str:
        if kind not in SCALARS:
            raise GGUFError(f"{self.path}: damaged: value type {kind} does not exist")
        return SCALARS[GGUFValueType(kind)]


def _read_header(cursor: _Cursor) -> tuple[dict[str, Any], dict[str, StoredTensor]]:
    if cursor.take(4) != MAGIC:
        raise GGUFError(f"{cursor.path}: not a GGUF file")
    version = cursor.number("<I")
    if version not in (2, 3):
        raise GGUFError(f"{cursor.path}: GGUF version {version} is not supported; versions 2 and 3 are")
    n_tensors, n_keys = cursor.count(24), cursor.count(13)
    keys: dict[str, Any] = {}
    for _ in range(n_keys):
        key = cursor.string()
        if key in keys:
            raise GGUFError(f"{cursor.path}: damaged: key {key} stands twice")
        keys[key] = cursor.value(cursor.number("<i"))
    infos = [_read_info(cursor) for _ in range(n_tensors)]
    alignment = keys.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment <= 0 or alignment & (alignment - 1):
        raise GGUFError(f"{cursor.path}: damaged: alignment {alignment} is not a power of two")
    start = cursor.position() + -cursor.position() % alignment
    tensors: dict[str, StoredTensor] = {}
    expected = 0
    file_size = cursor.path.stat().st_size
    for spec, offset, n_bytes in infos:
        if spec.name in tensors:
            raise GGUFError(f"{cursor.path}: damaged: tensor {spec.name} stands twice")
        if offset != expected:
            raise GGUFError(f"{cursor.path}: damaged: {spec.name} starts at {offset}, not at {expected}")
        if start + offset + n_bytes > file_size:
            raise GGUFError(
                f"{cursor.path}: truncated: the file ends before {spec.name} does; fetch it again"
            )
        tensors[spec.name] = StoredTensor(spec, start + offset, n_bytes)
        expected = offset + n_bytes + -n_bytes % alignment
    return keys, tensors


def _read_info(cursor: _Cursor) -> tuple[TensorSpec, int, int]:
    name = cursor.string()
    n_dims = cursor.number("<I")
    if not 1 <= n_dims <= MAX_DIMS:
        raise GGUFError(f"{cursor.path}: damaged: {name} has {n_dims} dimensions")
    ne = [cursor.number("<Q") for _ in range(n_dims)]
    kind = cursor.number("<i")
    try:
        qtype = QType(kind)
    except ValueError:
        raise GGUFError(f"{cursor.path}: {name}: tensor type {kind} is unknown here") from None
    offset: int = cursor.number("<Q")
    block_size, type_size = GGML_QUANT_SIZES[qtype]
    if min(ne) < 1 or ne[0] % block_size:
        raise GGUFError(f"{cursor.path}: damaged: {name} has shape {ne}, which {qtype.name} cannot hold")
    spec = TensorSpec(name, tuple(reversed(ne)), qtype)
    return spec, offset, spec.n_elements // block_size * type_size
