"""One key-value pair of a GGUF file, with the type under which it is stored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gguf import GGUFValueType

__all__ = ["KeyValue", "Numbers", "elements", "exact_bytes", "readable"]

Numbers = memoryview
"""An array of numbers as a file holds it: it takes the bytes that it has there, and its elements are Python's."""


def elements(value: Any) -> Sequence[Any] | None:
    """The elements of an array, None where the value of a key is no array."""
    return value if isinstance(value, (list, Numbers)) else None


def exact_bytes(text: str) -> bytes:
    """The bytes of a text as they lie in a file, whether they are UTF-8 or not."""
    return text.encode("utf-8", "surrogateescape")


def readable(value: Any) -> Any:
    """A text, or those of an array, with a replacement character for what is not UTF-8; other values as they are."""
    if isinstance(value, list):
        return [readable(element) for element in value]
    return exact_bytes(value).decode("utf-8", "replace") if isinstance(value, str) else value


@dataclass(frozen=True)
class KeyValue:
    """One pair of a GGUF file; `sub_type` is the type of the elements of an array.

    An array is a list; one of numbers that was read from a file is `Numbers`.
    """

    key: str
    value: Any
    type: GGUFValueType
    sub_type: GGUFValueType | None = None

    @classmethod
    def text(cls, key: str, value: str) -> KeyValue:
        """A string."""
        return cls(key, value, GGUFValueType.STRING)

    @classmethod
    def u32(cls, key: str, value: int) -> KeyValue:
        """An unsigned integer of 32 bits: llama.cpp's type for counts, sizes and token ids."""
        return cls(key, value, GGUFValueType.UINT32)

    @classmethod
    def f32(cls, key: str, value: float) -> KeyValue:
        """A binary32."""
        return cls(key, value, GGUFValueType.FLOAT32)

    @classmethod
    def flag(cls, key: str, value: bool) -> KeyValue:
        """A bool."""
        return cls(key, value, GGUFValueType.BOOL)

    @classmethod
    def array(cls, key: str, values: Sequence[Any], sub_type: GGUFValueType) -> KeyValue:
        """An array; llama.cpp's converter writes no empty ones."""
        return cls(key, list(values), GGUFValueType.ARRAY, sub_type)
