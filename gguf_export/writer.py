"""The output file: declared whole by a plan, then filled with slabs at their offsets in any order.

Layout of a GGUF file (version 3, little endian): the magic, counts, key-value pairs, tensor infos, padding to the
alignment, then the tensors one behind the other, each padded. llama.cpp accepts no gaps and no other order
(ggml/src/gguf.cpp), so every offset is known before the first weight is read.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import struct
import threading
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from gguf import GGUFValueType

from gguf_export.metadata import KeyValue
from quantize.exceptions import OutputError
from quantize.layout import ALIGNMENT, Plan, PlannedTensor
from quantize.tensors import Array

MAGIC = b"GGUF"
VERSION = 3
PARTIAL_SUFFIX = ".partial"

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


def header(keys: Sequence[KeyValue], plan: Plan) -> bytes:
    """Everything before the first tensor, padded to the alignment.

    Dimensions are written as ggml's C writer leaves them: fastest first, trailing ones dropped.
    """
    parts = [MAGIC, struct.pack("<IQQ", VERSION, len(plan.tensors), len(keys))]
    for kv in keys:
        parts += [_string(kv.key), struct.pack("<i", kv.type), _value(kv.value, kv.type, kv.sub_type)]
    for tensor in plan.tensors:
        ne = list(reversed(tensor.spec.shape))
        while len(ne) > 1 and ne[-1] == 1:
            ne.pop()
        parts += [
            _string(tensor.spec.name),
            struct.pack(f"<I{len(ne)}QiQ", len(ne), *ne, tensor.qtype, tensor.offset),
        ]
    written = b"".join(parts)
    return written + bytes(-len(written) % ALIGNMENT)


def _string(text: str) -> bytes:
    data = text.encode("utf-8")
    return struct.pack("<Q", len(data)) + data


def _value(value: Any, kind: GGUFValueType, sub_type: GGUFValueType | None) -> bytes:
    if kind == GGUFValueType.STRING:
        return _string(value)
    if kind == GGUFValueType.ARRAY:
        if sub_type is None:
            raise ValueError("an array needs the type of its elements")
        elements = b"".join(_value(element, sub_type, None) for element in value)
        return struct.pack("<iQ", sub_type, len(value)) + elements
    return struct.pack(SCALARS[kind], value)


def check_space(wanted: Iterable[tuple[Path, int]]) -> None:
    """Refuse before the work what would fail after hours of it.

    Args:
        wanted: output folders that exist, each with the bytes that will be written there.

    Raises:
        OutputError: a disk has less free space than all outputs on it need together.
    """
    needed: Counter[int] = Counter()
    free: dict[int, tuple[Path, int]] = {}
    for folder, n_bytes in wanted:
        device = folder.stat().st_dev
        needed[device] += n_bytes
        free[device] = (folder, shutil.disk_usage(folder).free)
    for device, n_bytes in needed.items():
        folder, available = free[device]
        if n_bytes > available:
            raise OutputError(
                f"{folder}: the files need {n_bytes / 2**30:.2f} GiB, {available / 2**30:.2f} GiB are free; "
                "make space or choose another folder with -o"
            )


class Sink:
    """One GGUF file in the making: `name.partial` until `commit` gives it its name.

    Slabs may come from several threads. Used as a context manager, it removes the partial file unless `commit` was
    reached.
    """

    def __init__(self, path: Path, keys: Sequence[KeyValue], plan: Plan) -> None:
        """Create the partial file with its header and its full length.

        Raises:
            OutputError: the file cannot be created or there is no space for it.
        """
        self.path = path
        self.partial = path.with_name(path.name + PARTIAL_SUFFIX)
        written = header(keys, plan)
        self._data_offset = len(written)
        self.n_bytes = self._data_offset + plan.data_bytes
        self._lock = threading.Lock()
        self._committed = False
        with self._errors():
            self._file = self.partial.open("wb")
            self._file.write(written)
            # The padding behind each tensor is never written to: a file that is lengthened holds zeros there.
            self._file.truncate(self.n_bytes)

    def write(self, tensor: PlannedTensor, offset: int, slab: Array) -> None:
        """Put bytes at `offset` from the start of a tensor.

        Raises:
            OutputError: the disk is full or broken.
            ValueError: the slab does not lie within the tensor.
        """
        if offset < 0 or offset + slab.nbytes > tensor.n_bytes:
            raise ValueError(
                f"{tensor.spec.name}: slab of {slab.nbytes} bytes at {offset} of {tensor.n_bytes}"
            )
        with self._errors(), self._lock:
            self._file.seek(self._data_offset + tensor.offset + offset)
            self._file.write(slab.data)

    def commit(self) -> None:
        """Make the file durable and give it its final name.

        Raises:
            OutputError: the disk is full or broken; nothing appears under the final name.
        """
        with self._errors():
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            self.partial.replace(self.path)
        self._committed = True

    def __enter__(self) -> Sink:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._committed:
            # Closing flushes; a full disk was reported already, by the write that met it.
            with contextlib.suppress(OSError):
                self._file.close()
            self.partial.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _errors(self) -> Any:
        try:
            yield
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise OutputError(
                    f"{self.partial}: no space left ({error.strerror}) for a file of "
                    f"{self.n_bytes / 2**30:.2f} GiB; make space or choose another folder with -o"
                ) from error
            raise OutputError(f"{self.partial}: cannot be written: {error.strerror or error}") from error
