"""GGUF files made to order: raw headers, and files that exist with other keys or fewer tensors."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from gguf import GGUFValueType as Type

from gguf_export.writing.header import header
from quantize.containers.gguf import read_container
from quantize.containers.keys import KeyValue

__all__ = ["Info", "array", "raw_file", "remade", "text", "without_tensors"]


class Info(SimpleNamespace):
    """What `header` asks of a planned tensor, to be made of anything: `spec`, `qtype` and `offset`."""

    @property
    def name(self) -> Any:
        return self.spec.name


def text(content: bytes) -> bytes:
    """A text, or the name of a key, as it lies in a file."""
    return struct.pack("<Q", len(content)) + content


def array(kind: int, n: int, elements: bytes) -> bytes:
    """The value of a key that holds an array, its type included."""
    return struct.pack("<iiQ", Type.ARRAY, kind, n) + elements


def raw_file(path: Path, keys: Iterable[tuple[bytes, bytes]], n_tensors: int = 0, infos: bytes = b"") -> Path:
    """A file of such keys: pairs of a name, and of the bytes of type and value."""
    pairs = [text(name) + value for name, value in keys]
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, n_tensors, len(pairs)) + b"".join(pairs) + infos)
    return path


def remade(
    source: Path,
    target: Path,
    change: Iterable[KeyValue] = (),
    *,
    leave_out: Iterable[str] = (),
    keep: Callable[[str], bool] = lambda name: True,
) -> Path:
    """The file `source` with some keys set or left out, and of its tensors those whose name is to be kept."""
    container, content = read_container(source), source.read_bytes()
    keys = {key: KeyValue(key, value, *container.types[key]) for key, value in container.keys.items()}
    keys |= {kv.key: kv for kv in change}
    for key in leave_out:
        del keys[key]
    infos, data = [], b""
    for stored in container.tensors.values():
        if keep(stored.spec.name):
            infos.append(Info(spec=stored.spec, qtype=stored.spec.qtype, offset=len(data)))
            data += content[stored.offset : stored.offset + stored.n_bytes] + bytes(-stored.n_bytes % 32)
    target.write_bytes(header(list(keys.values()), SimpleNamespace(tensors=infos)) + data)  # type: ignore[arg-type]
    return target


def without_tensors(source: Path, target: Path) -> Path:
    """What llama.cpp's converter makes with `--vocab-only`: all keys and no tensor."""
    return remade(source, target, keep=lambda name: False)
