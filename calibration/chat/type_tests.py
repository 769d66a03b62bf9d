"""The tests behind `is`, which are those that llama.cpp has (common/jinja/value.cpp: global_builtins, test_is_*)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from jinja2 import Undefined
from jinja2.utils import Namespace

from calibration.chat.faults import TemplateFault
from calibration.chat.values import compared, plain, type_name, unknown

__all__ = ["TESTS", "apply_test", "is_in"]


def _is(*kinds: str) -> Callable[[Any], bool]:
    return lambda value: type_name(value) in kinds


def _integer(value: Any) -> int:
    if type_name(value) != "Integer":
        raise TemplateFault(f"a test of an Integer gets a value of type {type_name(value)}")
    return int(value)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TemplateFault(f"a test of a String gets a value of type {type_name(value)}")
    return value


def is_in(needle: Any, haystack: Any) -> bool:
    """Whether a list, text or object holds a value (test_is_in)."""
    haystack = plain(haystack)
    if isinstance(haystack, Undefined):
        return False
    if isinstance(haystack, str):
        if not isinstance(needle, str):
            raise TemplateFault(f"looks for a value of type {type_name(needle)} in a String")
        return needle in haystack
    if isinstance(haystack, dict):
        if isinstance(needle, (list, dict, Namespace, Undefined)):
            raise TemplateFault(f"a key of type {type_name(needle)}")
        return needle in haystack
    if isinstance(haystack, (list, tuple)):
        return needle in haystack
    raise TemplateFault(f"looks for something in a value of type {type_name(haystack)}")


def _is_same(left: Any, right: Any) -> bool:
    if isinstance(left, Undefined) or isinstance(right, Undefined):
        return False
    if type(left) is type(right) and (left is None or isinstance(left, (bool, int))):
        return bool(left == right)
    return left is right


def _is_test(name: Any) -> bool:
    return _text(name) in TESTS or name in _MISSING


def _divides(value: Any, by: Any) -> bool:
    if not _integer(by):
        raise TemplateFault("divides by zero")
    return _integer(value) % _integer(by) == 0


_ITERABLE = _is("Object", "Array", "Tuple", "String", "Undefined")

TESTS: Mapping[str, Callable[..., bool]] = {
    "boolean": _is("Boolean"),
    "callable": _is("Function"),
    "odd": lambda value: _integer(value) % 2 != 0,
    "even": lambda value: _integer(value) % 2 == 0,
    "false": lambda value: value is False,
    "true": lambda value: value is True,
    "divisibleby": _divides,
    "string": _is("String"),
    "integer": _is("Integer"),
    "float": _is("Float"),
    "number": _is("Integer", "Float"),
    "iterable": _ITERABLE,
    "sequence": _ITERABLE,
    "mapping": _is("Object"),
    "lower": lambda value: not any(char.isascii() and char.isupper() for char in _text(value)),
    "upper": lambda value: not any(char.isascii() and char.islower() for char in _text(value)),
    "none": _is("None"),
    "defined": lambda value: not isinstance(value, Undefined),
    "undefined": _is("Undefined"),
    "eq": lambda left, right: compared(left, right, "=="),
    "equalto": lambda left, right: compared(left, right, "=="),
    "ne": lambda left, right: compared(left, right, "!="),
    "ge": lambda left, right: compared(left, right, ">="),
    "gt": lambda left, right: compared(left, right, ">"),
    "greaterthan": lambda left, right: compared(left, right, ">"),
    "lt": lambda left, right: compared(left, right, "<"),
    "lessthan": lambda left, right: compared(left, right, "<"),
    "in": is_in,
    "test": _is_test,
    "sameas": _is_same,
}
_MISSING = ("escaped", "filter")  # llama.cpp knows the names, and says that they are not implemented


def apply_test(name: str, value: Any, *arguments: Any) -> bool:
    """`value is name(arguments)`.

    Raises:
        UnknownNameError: llama.cpp has no such test.
        TemplateFault: the test does not fit the value.
    """
    test = TESTS.get(name)
    if test is None:
        raise unknown(f"the test '{name}'")
    try:
        return test(value, *arguments)
    except TypeError:
        raise TemplateFault(f"the test '{name}' gets {len(arguments)} arguments") from None
