"""The bytes before the first tensor: keys and tensor infos of a GGUF file (version 3, little endian).

The magic, counts, key-value pairs, tensor infos, padding to the alignment (ggml/src/gguf.cpp).
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

from gguf import GGUFValueType

from quantize.containers.gguf import MAGIC, SCALARS
from quantize.containers.keys import KeyValue, Numbers, exact_bytes
from quantize.recipes.layout import ALIGNMENT, Plan

__all__ = ["VERSION", "header"]

VERSION = 3


def header(keys: Sequence[KeyValue], plan: Plan, *, keeps_axes: bool = False) -> bytes:
    """Everything before the first tensor, padded to the alignment.

    Dimensions are written fastest first. ggml's C writer, through which llama-quantize goes, drops trailing ones;
    `keeps_axes` keeps them, as llama.cpp's converter does, which is written in Python (gguf-py: GGUFWriter).
    """
    parts = [MAGIC, struct.pack("<IQQ", VERSION, len(plan.tensors), len(keys))]
    for kv in keys:
        parts += [_string(kv.key), struct.pack("<i", kv.type), _value(kv.value, kv.type, kv.sub_type)]
    for tensor in plan.tensors:
        ne = list(reversed(tensor.spec.shape))
        while not keeps_axes and len(ne) > 1 and ne[-1] == 1:
            ne.pop()
        parts += [
            _string(tensor.name),
            struct.pack(f"<I{len(ne)}QiQ", len(ne), *ne, tensor.qtype, tensor.offset),
        ]
    written = b"".join(parts)
    return written + bytes(-len(written) % ALIGNMENT)


def _string(text: str) -> bytes:
    data = exact_bytes(text)
    return struct.pack("<Q", len(data)) + data


def _value(value: Any, kind: GGUFValueType, sub_type: GGUFValueType | None) -> bytes:
    if kind == GGUFValueType.STRING:
        return _string(value)
    if kind == GGUFValueType.ARRAY:
        if sub_type is None:
            raise ValueError("an array needs the type of its elements")
        return struct.pack("<iQ", sub_type, len(value)) + _elements(value, sub_type)
    return struct.pack(SCALARS[kind], value)


def _elements(values: Sequence[Any], kind: GGUFValueType) -> bytes:
    if isinstance(values, Numbers):
        return values.tobytes()
    if kind in SCALARS:  # all at once: a vocabulary has a hundred thousand of them
        return struct.pack(f"<{len(values)}{SCALARS[kind].lstrip('<')}", *values)
    return b"".join(_value(value, kind, None) for value in values)
