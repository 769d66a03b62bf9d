"""The GGUF container as it is read: keys and tensor infos, by the rules of ggml's reader (ggml/src/gguf.cpp).

Every count and length is checked against the rest of the file before anything is allocated, so that a damaged or
hostile header costs one line and no memory. An array of numbers takes the bytes that it has in the file; of what takes
more (texts, keys, tensors) there are limits, far beyond those of real models. Models and importance matrices come in
this container.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from gguf import GGUFValueType

from quantize.containers.keys import KeyValue, Numbers, readable
from quantize.containers.untrusted import quoted, regular_size
from quantize.exceptions import GGUFError, MoeGgufError
from quantize.tensors import QType, TensorSpec

__all__ = [
    "AGAIN",
    "MAGIC",
    "MAX_NAME",
    "MAX_TENSORS",
    "SCALARS",
    "Container",
    "GGUFTensor",
    "KeyType",
    "read_container",
]

MAGIC = b"GGUF"
VERSIONS = (2, 3)

SCALARS = {
    GGUFValueType.UINT8: "<B",
    GGUFValueType.INT8: "<b",
    GGUFValueType.UINT16: "<H",
    GGUFValueType.INT16: "<h",
    GGUFValueType.UINT32: "<I",
    GGUFValueType.INT32: "<i",
    GGUFValueType.FLOAT32: "<f",
    GGUFValueType.BOOL: "<?",
    GGUFValueType.UINT64: "<Q",
    GGUFValueType.INT64: "<q",
    GGUFValueType.FLOAT64: "<d",
}

MAX_DIMS = 4  # GGML_MAX_DIMS
MAX_NAME = 63  # bytes of a tensor's name: GGML_MAX_NAME without its NUL
MAX_HEADER = 2**27  # bytes; keys and infos of the largest known models take a few ten megabytes
MAX_TEXTS = (
    2**21
)  # of all arrays together; the largest known vocabularies have 0.3 million tokens, 0.5 million merges
MAX_KEYS = 2**16  # models have some dozens
MAX_TENSORS = 2**18  # experts that were not stacked are some ten thousand
TRUTHS = bytes([0]) + bytes([1]) * 255  # whatever is not 0 is true
MAX_ALIGNMENT = 2**20  # bytes; ggml knows no limit, usual are 32 to 4096
AGAIN = "fetch it again"

KeyType = tuple[GGUFValueType, GGUFValueType | None]
"""The type of a value, and, of an array, that of its elements."""


@dataclass(frozen=True)
class GGUFTensor:
    """The place of one tensor in a file."""

    spec: TensorSpec
    offset: int  # bytes from the start of the file
    n_bytes: int
    part: int = 0  # which of the files of a model that is split, counted from 0


@dataclass(frozen=True)
class Container:
    """The front of a GGUF file: keys and tensor infos, which stand before the weights."""

    keys: Mapping[str, Any]  # an array of texts is a list, one of numbers `Numbers`
    types: Mapping[str, KeyType]  # of the keys
    tensors: Mapping[str, GGUFTensor]  # in file order
    n_bytes: int  # of the file
    alignment: int
    exact: Mapping[str, KeyValue] = field(default_factory=dict)
    """Keys whose name or texts are not UTF-8, as their bytes are: with halves of surrogate pairs (`exact_bytes`)."""


def read_container(path: Path, error: type[MoeGgufError] = GGUFError) -> Container:
    """Read keys and tensor infos; no weight is touched.

    Raises:
        error: not a GGUF file, truncated, or damaged.
    """
    n_bytes = regular_size(path, error)
    try:
        with path.open("rb") as file:
            return _read(_Cursor(path, file, n_bytes, error), n_bytes)
    except OSError as failure:
        raise error(str(path), f"cannot be read: {failure.strerror}") from None


class _Cursor:
    """Reads little-endian values and never past the end of the file."""

    def __init__(self, path: Path, file: BinaryIO, n_bytes: int, error: type[MoeGgufError]) -> None:
        self.path, self._file, self._left, self._error = path, file, min(n_bytes, MAX_HEADER), error
        self._texts_left = MAX_TEXTS
        self.is_readable = True  # whether all texts so far are UTF-8

    def fault(self, message: str, remedy: str = "") -> MoeGgufError:
        return self._error(str(self.path), message, remedy)

    def damage(self, message: str) -> MoeGgufError:
        return self.fault(f"damaged: {message}", AGAIN)

    def truncation(self, message: str) -> MoeGgufError:
        return self.fault(f"truncated{message}", AGAIN)

    def take(self, n_bytes: int) -> bytes:
        data = self._file.read(n_bytes) if n_bytes <= self._left else b""
        if len(data) != n_bytes:
            raise self.truncation(" or damaged: the header runs past the end of the file")
        self._left -= n_bytes
        return data

    def number(self, layout: str) -> Any:
        return struct.unpack(layout, self.take(struct.calcsize(layout)))[0]

    def count(self, least_bytes: int, most: int = 2**64, things: str = "entries") -> int:
        """A count of things that take at least `least_bytes` each."""
        number: int = self.number("<Q")
        if number * least_bytes > self._left:
            raise self.truncation(f" or damaged: {number} {things} do not fit into the file")
        if number > most:
            raise self.fault(f"has {number} {things}, more than any model", "is this a model?")
        return number

    def string(self) -> str:
        """A text; bytes that are no UTF-8, which llama.cpp takes as they are, become halves of surrogate pairs."""
        data = self.take(self.count(1))
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError:
            self.is_readable = False
            return data.decode("utf-8", "surrogateescape")

    def position(self) -> int:
        return self._file.tell()

    def value(self, kind: int) -> tuple[Any, KeyType]:
        if kind == GGUFValueType.STRING:
            return self.string(), (GGUFValueType.STRING, None)
        if kind != GGUFValueType.ARRAY:
            return self.number(self._layout(kind)), (GGUFValueType(kind), None)
        sub_type = self.number("<i")
        if sub_type == GGUFValueType.STRING:
            n = self.count(8, self._texts_left, "texts in arrays")
            self._texts_left -= n
            return [self.string() for _ in range(n)], (GGUFValueType.ARRAY, GGUFValueType.STRING)
        if sub_type == GGUFValueType.ARRAY:
            raise self.damage("an array holds arrays, which ggml does not read")
        return self._numbers(self._layout(sub_type)), (GGUFValueType.ARRAY, GGUFValueType(sub_type))

    def _numbers(self, layout: str) -> Numbers:
        size = struct.calcsize(layout)
        data = self.take(self.count(size) * size)
        if layout == SCALARS[GGUFValueType.BOOL]:
            data = data.translate(TRUTHS)
        # No view of other numbers can be taken of nothing.
        return memoryview(data).cast(layout[1:]) if data else memoryview(array("b"))  # type: ignore[call-overload]

    def _layout(self, kind: int) -> str:
        if kind not in SCALARS:
            raise self.damage(f"value type {kind} does not exist")
        return SCALARS[GGUFValueType(kind)]


def _read(cursor: _Cursor, n_bytes: int) -> Container:
    if cursor.take(4) != MAGIC:
        raise cursor.fault("not a GGUF file")
    version = cursor.number("<I")
    if version not in VERSIONS:
        raise cursor.fault(f"GGUF version {version} is not supported", "versions 2 and 3 are")
    n_tensors, n_keys = cursor.count(24, MAX_TENSORS, "tensors"), cursor.count(13, MAX_KEYS, "keys")
    keys: dict[str, Any] = {}
    types: dict[str, KeyType] = {}
    exact: dict[str, KeyValue] = {}
    for _ in range(n_keys):
        cursor.is_readable = True
        name = cursor.string()
        value, kind = cursor.value(cursor.number("<i"))
        key = name
        if not cursor.is_readable:
            key = readable(name)
            exact[key] = KeyValue(name, value, *kind)
            value = readable(value)
        if not key or key in keys:
            fault = "stands twice" if key else "is empty"
            raise cursor.damage(f"key {quoted(key)} {fault}")
        keys[key], types[key] = value, kind
    infos = [_read_info(cursor) for _ in range(n_tensors)]
    alignment = _alignment(cursor, keys, types)
    start = cursor.position() + -cursor.position() % alignment
    tensors: dict[str, GGUFTensor] = {}
    expected = 0
    for spec, offset in infos:
        size = spec.n_bytes
        if spec.name in tensors:
            raise cursor.damage(f"tensor {quoted(spec.name)} stands twice")
        if offset != expected:
            raise cursor.damage(f"{quoted(spec.name)} starts at {offset}, not at {expected}")
        if start + offset + size > n_bytes:
            raise cursor.truncation(f": the file ends before {quoted(spec.name)} does")
        tensors[spec.name] = GGUFTensor(spec, start + offset, size)
        expected = offset + size + -size % alignment
    return Container(keys, types, tensors, n_bytes, alignment, exact)


def _alignment(cursor: _Cursor, keys: Mapping[str, Any], types: Mapping[str, KeyType]) -> int:
    alignment: Any = keys.get("general.alignment", 32)
    is_u32 = types.get("general.alignment", (GGUFValueType.UINT32, None))[0] == GGUFValueType.UINT32
    if not is_u32 or not 1 <= alignment <= MAX_ALIGNMENT or alignment & (alignment - 1):
        raise cursor.damage(f"general.alignment {quoted(alignment)} is not a power of two as u32")
    return int(alignment)


def _read_info(cursor: _Cursor) -> tuple[TensorSpec, int]:
    """A tensor and its offset in bytes from the start of the data."""
    name = readable(cursor.string())
    if not name or len(name.encode()) > MAX_NAME:
        raise cursor.damage(f"a tensor is called {quoted(name)}, names have 1 to {MAX_NAME} bytes")
    n_dims = cursor.number("<I")
    if not 1 <= n_dims <= MAX_DIMS:
        raise cursor.damage(f"{quoted(name)} has {n_dims} dimensions")
    ne = [cursor.number("<Q") for _ in range(n_dims)]
    kind = cursor.number("<i")
    try:
        qtype = QType(kind)
    except ValueError:
        raise cursor.fault(f"{quoted(name)}: tensor type {kind} is unknown here") from None
    offset: int = cursor.number("<Q")
    if min(ne) < 1 or ne[0] % qtype.block_size:
        raise cursor.damage(f"{quoted(name)} has shape {ne}, which {qtype.name} cannot hold")
    return TensorSpec(name, tuple(reversed(ne)), qtype), offset
