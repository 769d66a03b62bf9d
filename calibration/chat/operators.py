"""Operators and look-ups as llama.cpp computes them (common/jinja/runtime.cpp: binary_ and member_expression)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from jinja2 import Undefined

from calibration.chat.built_ins import method_of
from calibration.chat.faults import TemplateFault, TooMuchError
from calibration.chat.list_parts import MAX_ITEMS
from calibration.chat.type_tests import is_in
from calibration.chat.values import bounded, plain, refuse_length, to_text, type_name, unknown

__all__ = ["OPERATORS", "entry_of", "part_of"]


def _joined(sign: str) -> Callable[[Any, Any], Any]:
    """`+` and `~`, which are the same where one side is a text."""

    def operator(left: Any, right: Any) -> Any:
        nothing = [value is None or isinstance(value, Undefined) for value in (left, right)]
        if any(nothing):
            if not isinstance(right if nothing[0] else left, str):
                raise TemplateFault(f"{type_name(left)} {sign} {type_name(right)}")
            return right if nothing[0] else left
        if sign == "+" and _are_numbers(left, right):
            return _exact(left + right)
        if isinstance(left, (list, tuple)) and isinstance(right, (list, tuple)) and sign == "+":
            if len(left) + len(right) > MAX_ITEMS:
                raise TooMuchError(f"it makes a list of more than {MAX_ITEMS} items")
            return [*left, *right]
        if isinstance(left, str) or isinstance(right, str):
            return bounded(to_text(left) + to_text(right))
        raise TemplateFault(f"{type_name(left)} {sign} {type_name(right)}")

    return operator


def _exact(value: Any) -> Any:
    """A number as llama.cpp holds it, with 64 bits."""
    if isinstance(value, int) and abs(value) >= 2**63:
        raise TooMuchError("it computes a number of more than 64 bits")
    return value


def _are_numbers(left: Any, right: Any) -> bool:
    return {type_name(left), type_name(right)} <= {"Integer", "Float"}


def _of_numbers(sign: str, compute: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    def operator(left: Any, right: Any) -> Any:
        if sign == "*" and {type_name(left), type_name(right)} == {"String", "Integer"}:
            text, times = (left, right) if isinstance(left, str) else (right, left)
            refuse_length(len(text) * max(times, 0))
            return text * times
        if not _are_numbers(left, right):
            raise TemplateFault(f"{type_name(left)} {sign} {type_name(right)}")
        try:
            return _exact(compute(left, right))
        except (ZeroDivisionError, OverflowError, ValueError):
            raise TemplateFault(f"{left} {sign} {right} has no value") from None

    return operator


def _modulo(left: Any, right: Any) -> Any:
    rest = math.fmod(left, right)  # C's, whose sign is the dividend's
    return rest if isinstance(left, float) or isinstance(right, float) else int(rest)


def _contains(left: Any, right: Any) -> bool:
    if isinstance(right, Undefined):
        return False
    if isinstance(left, Undefined) or right is None:
        raise TemplateFault(f"looks for a value of type {type_name(left)} in one of type {type_name(right)}")
    if isinstance(right, str) and not isinstance(left, str):
        raise TemplateFault(f"looks for a value of type {type_name(left)} in a String")
    return is_in(left, right)


def _negative(sign: int) -> Callable[[Any], Any]:
    def operator(value: Any) -> Any:
        if not _are_numbers(value, value):
            raise TemplateFault(f"a sign before a value of type {type_name(value)}")
        return sign * value

    return operator


OPERATORS: Mapping[str, Callable[..., Any]] = {
    "add": _joined("+"),
    "concat": _joined("~"),
    "sub": _of_numbers("-", lambda left, right: left - right),
    "mul": _of_numbers("*", lambda left, right: left * right),
    "div": _of_numbers("/", lambda left, right: left / right),
    "mod": _of_numbers("%", _modulo),
    "lt": _of_numbers("<", lambda left, right: left < right),
    "gt": _of_numbers(">", lambda left, right: left > right),
    "lteq": _of_numbers("<=", lambda left, right: left <= right),
    "gteq": _of_numbers(">=", lambda left, right: left >= right),
    "eq": lambda left, right: bool(plain(left) == plain(right)),
    "ne": lambda left, right: bool(plain(left) != plain(right)),
    "in": _contains,
    "notin": lambda left, right: not _contains(left, right),
    "neg": _negative(-1),
    "pos": _negative(1),
}


def part_of(value: Any, start: Any, stop: Any, step: Any) -> Any:
    """`value[start:stop:step]`.

    Raises:
        UnknownNameError: the value is neither a text nor a list.
    """
    if not isinstance(value, (str, list, tuple)):
        raise unknown(f"a slice of a value of type {type_name(value)}")
    bounds = (start, stop, step)
    if any(bound is not None and type_name(bound) != "Integer" for bound in bounds) or step == 0:
        raise TemplateFault("a slice of other than whole numbers")
    return value[start:stop:step]


def entry_of(value: Any, key: Any) -> Any:
    """`value[key]`; `Undefined` where there is nothing."""
    value = plain(value)
    if isinstance(value, Undefined) or isinstance(key, Undefined):
        return Undefined()
    if isinstance(key, (list, dict)):
        raise TemplateFault(f"a key of type {type_name(key)}")
    if isinstance(value, dict):
        if key in value:
            return value[key]
    elif isinstance(value, (str, list, tuple)) and isinstance(key, int):
        least = 0 if isinstance(value, str) else -len(value)  # a text has no negative places in llama.cpp
        return value[key] if least <= key < len(value) else Undefined()
    elif not isinstance(key, str) and not isinstance(value, (str, list, tuple)):
        raise TemplateFault(f"looks up a {type_name(key)} in a value of type {type_name(value)}")
    return (method_of(value, key) if isinstance(key, str) else None) or Undefined()
