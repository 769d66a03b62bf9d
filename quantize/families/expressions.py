"""Whole numbers said in words: "n_head*head_dim", "kv_lora_rank+n_rot", "hidden_size/num_attention_heads"."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

__all__ = ["evaluate"]


def evaluate(expression: str, values: Mapping[str, Any]) -> int:
    """Sums and differences of products of names and whole numbers; a division drops the remainder.

    Raises:
        KeyError: a name has no value.
        TypeError: a value is no whole number.
        ZeroDivisionError: a divisor is 0.
    """
    first, *signed = re.split(r"([+-])", expression)
    result = _product(first, values)
    for sign, term in zip(signed[::2], signed[1::2], strict=True):
        result += _product(term, values) * (1 if sign == "+" else -1)
    return result


def _product(term: str, values: Mapping[str, Any]) -> int:
    first, *applied = re.split(r"([*/])", term)
    result = _number(first, values)
    for sign, factor in zip(applied[::2], applied[1::2], strict=True):
        number = _number(factor, values)
        result = result * number if sign == "*" else result // number
    return result


def _number(word: str, values: Mapping[str, Any]) -> int:
    word = word.strip()
    if word.isdecimal():
        return int(word)
    value = values[word]
    if type(value) is not int:
        raise TypeError(f"{word} is no whole number")
    return value
