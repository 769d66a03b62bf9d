"""The methods of lists (common/jinja/value.cpp: value_array_t::get_builtins)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cmp_to_key
from typing import Any

from jinja2 import Undefined

from calibration.chat.arguments import MISSING, Arguments
from calibration.chat.faults import TemplateFault
from calibration.chat.type_tests import apply_test
from calibration.chat.values import bounded, compared, plain, to_text, type_name, unknown

__all__ = ["MAX_ITEMS", "METHODS", "ordered"]

MAX_ITEMS = 100_000  # of a list that a template makes


def _attribute(value: Any, name: Any, default: Any) -> Any:
    """An entry of an item, as `selectattr`, `map`, `join` and `sort` look it up (get_attribute)."""
    value = plain(value)
    if isinstance(value, (list, tuple)):
        place = int(name) if isinstance(name, str) and name.isdecimal() else name
        if isinstance(place, int) and -len(value) <= place < len(value):
            return value[place]
    if isinstance(value, dict) and isinstance(name, (str, int, float, bool)):
        return value.get(name, default)
    return default


def _selected(rejects: bool) -> Callable[[Any, Arguments], list[Any]]:
    """`select`, `selectattr` and their opposites, which llama.cpp tells apart by the number of arguments only.

    One argument is an attribute that is true; of two the first is a test of the item itself, so that
    `selectattr("x", "defined")` fails; three are an attribute, a test and its argument.
    """

    def method(items: Any, arguments: Arguments) -> list[Any]:
        n = len(arguments)
        if arguments.named or not 1 <= n <= 3:
            raise TemplateFault(f"{arguments.name} gets {n} arguments")
        first = arguments.need(0, str)
        if n == 1:
            kept = [bool(_attribute(item, first, None)) for item in items]
        else:
            test = first if n == 2 else arguments.need(1, str)
            value = arguments.given[-1]
            if n == 2 and not _is_test(test):
                raise unknown(
                    f"{arguments.name}('{first}', {_shown(value)}), whose first argument is no test"
                )
            kept = [
                apply_test(
                    test, item if n == 2 else _attribute(item, first, Undefined()), *_fitting(test, value)
                )
                for item in items
            ]
        return [item for item, keep in zip(items, kept, strict=True) if keep != rejects]

    return method


_OF_TYPES = ("boolean", "callable", "false", "true", "string", "integer", "float", "number", "none")
_OF_STATES = (
    "iterable",
    "sequence",
    "mapping",
    "lower",
    "upper",
    "defined",
    "undefined",
    "odd",
    "even",
    "test",
)
_WITHOUT_ARGUMENT = frozenset((*_OF_TYPES, *_OF_STATES))


def _fitting(test: str, value: Any) -> tuple[Any, ...]:
    """The argument of a test; llama.cpp passes one to each, and those that want none let it be."""
    return () if test in _WITHOUT_ARGUMENT else (value,)


def _is_test(name: str) -> bool:
    return bool(apply_test("test", name))


def _shown(value: Any) -> str:
    return f"'{value[:40]}'" if isinstance(value, str) else type_name(value)


def _join(items: Any, arguments: Arguments) -> str:
    sign, name = arguments.at(0, "d", ""), arguments.at(1, "attribute")
    texts = []
    for item in items:
        value = item if name is MISSING else _attribute(item, name, None)
        if not isinstance(value, (str, int, float)) or isinstance(value, bool):
            raise TemplateFault(f"join of a value of type {type_name(value)}")
        texts.append(to_text(value))
    return bounded(to_text(sign).join(texts))


def _map(items: Any, arguments: Arguments) -> list[Any]:
    if "attribute" not in arguments.named:
        raise unknown("map with the name of a filter")
    default = arguments.named.get("default", Undefined())
    return [_attribute(item, arguments.named["attribute"], default) for item in items]


def _append(items: Any, arguments: Arguments) -> Any:
    if not isinstance(items, list) or len(items) >= MAX_ITEMS:
        raise TemplateFault("append to a tuple, or to a list that is too long")
    items.append(arguments.need(0))
    return items


def _pop(items: Any, arguments: Arguments) -> Any:
    place = arguments.at(0, "", -1)
    if not isinstance(items, list) or not isinstance(place, int) or not -len(items) <= place < len(items):
        raise TemplateFault("pop of what is not in the list")
    return items.pop(place)


def ordered(items: Sequence[Any], key: Callable[[Any], Any], reverse: bool) -> list[Any]:
    """The items sorted by llama.cpp's comparison, in which what cannot be compared is equal."""
    sign = ">" if reverse else "<"

    def order(left: Any, right: Any) -> int:
        return compared(key(right), key(left), sign) - compared(key(left), key(right), sign)

    return sorted(items, key=cmp_to_key(order))


def _key(name: Any) -> Callable[[Any], Any]:
    return (lambda item: item) if name is MISSING else (lambda item: _attribute(item, name, None))


def _sort(items: Any, arguments: Arguments) -> list[Any]:
    return ordered(items, _key(arguments.at(2, "attribute")), arguments.flag(0, "reverse"))


def _extreme(sign: str) -> Callable[[Any, Arguments], Any]:
    def method(items: Any, arguments: Arguments) -> Any:
        key = _key(arguments.at(1, "attribute"))
        best = items[0] if items else Undefined()
        for item in items:
            if compared(key(item), key(best), sign):
                best = item
        return best

    return method


def _slice(items: Any, arguments: Arguments) -> Any:
    step = arguments.at(2, "", None)
    if step == 0:
        raise TemplateFault("a slice of step 0")
    return items[arguments.need(0, int) : arguments.at(1, "", None) : step]


METHODS: Mapping[str, Callable[[Any, Arguments], Any]] = {
    "list": lambda items, _arguments: list(items),
    "first": lambda items, _arguments: items[0] if items else Undefined(),
    "last": lambda items, _arguments: items[-1] if items else Undefined(),
    "length": lambda items, _arguments: len(items),
    "slice": _slice,
    "selectattr": _selected(rejects=False),
    "select": _selected(rejects=False),
    "rejectattr": _selected(rejects=True),
    "reject": _selected(rejects=True),
    "join": _join,
    "map": _map,
    "append": _append,
    "pop": _pop,
    "sort": _sort,
    "reverse": lambda items, _arguments: list(reversed(items)),
    "min": _extreme("<"),
    "max": _extreme(">"),
}
