"""The filters and methods of each type, which are one and the same in llama.cpp (common/jinja/value.cpp: get_builtins).

`value | name(...)` and `value.name(...)` call the same function there; what a type lacks is an error where it is
filtered, and an undefined value where it is read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from jinja2 import Undefined

from calibration.chat import list_parts, text_parts
from calibration.chat.arguments import Arguments
from calibration.chat.faults import TemplateFault
from calibration.chat.values import plain, to_json, to_text, type_name, unknown

__all__ = ["BUILT_INS", "Method", "apply_filter", "is_filter", "method_of", "tojson"]

BuiltIn = Callable[[Any, Arguments], Any]

_ALIASES = {"count": "length", "d": "default", "e": "escape", "trim": "strip"}
_COERCED = ("capitalize", "lower", "replace", "strip", "title", "upper", "wordcount")


def tojson(value: Any, arguments: Arguments) -> str:
    """The filter `tojson(ensure_ascii, indent, separators, sort_keys)`."""
    indent, separators = arguments.at(1, "indent", None), arguments.at(2, "separators", None)
    if arguments.flag(3, "sort_keys"):
        raise unknown("tojson with sort_keys")
    is_set = isinstance(indent, int) and not isinstance(indent, bool)
    signs = ["," if is_set else ", ", ": "]
    for place, sign in enumerate(separators[:2] if isinstance(separators, (list, tuple)) else ()):
        signs[place] = to_text(sign)
    text = to_json(value, min(indent, 64) if is_set else -1, signs)
    if not arguments.flag(0, "ensure_ascii"):
        return text
    return "".join(char if ord(char) < 128 else to_ascii(char) for char in text)


def to_ascii(char: str) -> str:
    """A character as JSON spells it in ASCII."""
    units = char.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[i]:02x}{units[i + 1]:02x}" for i in range(0, len(units), 2))


def _default(value: Any, arguments: Arguments) -> Any:
    if not 1 <= len(arguments) <= 2:
        raise TemplateFault("default wants 1 or 2 arguments")
    lacks = not value if arguments.flag(1, "boolean") else value is None or isinstance(value, Undefined)
    return arguments.at(0, "default_value", "") if lacks else value


def _default_of_text(value: Any, arguments: Arguments) -> Any:
    lacks = arguments.flag(1, "boolean") and not value
    return arguments.at(0, "default_value", "") if lacks else value


def _empty(make: Callable[[], Any]) -> BuiltIn:
    return lambda _value, _arguments: make()


def _number(kind: Callable[[Any], Any]) -> BuiltIn:
    return lambda value, _arguments: kind(value)


def _missing(what: str) -> BuiltIn:
    """What llama.cpp names and has not got: "NotImplemented"."""

    def refuse(_value: Any, _arguments: Arguments) -> Any:
        raise unknown(what)

    return refuse


def _get(value: Any, arguments: Arguments) -> Any:
    key = arguments.need(0, str)
    return value.get(key, arguments.at(1, "", None))


def _dictsort(value: Any, arguments: Arguments) -> Any:
    by_value = arguments.at(1, "by", None) == "value"
    entries = list_parts.ordered(
        list(value.items()), lambda entry: entry[1 if by_value else 0], arguments.flag(2, "reverse")
    )
    return dict(entries)


def _same(value: Any, _arguments: Arguments) -> Any:
    return value


def _printed(value: Any, _arguments: Arguments) -> str:
    return to_text(value)


_OF_NUMBERS: dict[str, BuiltIn] = {
    "default": _default,
    "abs": _number(abs),
    "int": _number(int),
    "float": _number(float),
    "safe": tojson,
    "string": tojson,
    "tojson": tojson,
}

_EMPTY_LISTS = ("items", "map", "reject", "rejectattr", "select", "selectattr", "unique")
_EMPTY_TEXTS = (
    "capitalize",
    "join",
    "lower",
    "replace",
    "safe",
    "string",
    "strip",
    "title",
    "truncate",
    "upper",
)

BUILT_INS: Mapping[str, Mapping[str, BuiltIn]] = {
    "Integer": _OF_NUMBERS,
    "Float": _OF_NUMBERS,
    "Boolean": {
        "default": _default,
        "int": _number(int),
        "float": _number(float),
        "safe": _printed,
        "string": _printed,
        "tojson": tojson,
    },
    "String": {
        **text_parts.METHODS,
        "default": _default_of_text,
        "string": _same,
        "safe": _same,
        "tojson": tojson,
        "join": _missing("the filter 'join' of a String"),
    },
    "Array": {
        **list_parts.METHODS,
        "default": _default,
        "string": _printed,
        "tojson": tojson,
        "unique": _missing("the filter 'unique' of an Array"),
    },
    "Object": {
        "get": _get,
        "keys": lambda value, _arguments: list(value),
        "values": lambda value, _arguments: list(value.values()),
        "items": lambda value, _arguments: list(value.items()),
        "tojson": tojson,
        "string": _printed,
        "length": lambda value, _arguments: len(value),
        "dictsort": _dictsort,
        "join": _missing("the filter 'join' of an Object"),
    },
    "None": {
        "default": _default,
        "tojson": tojson,
        "string": _printed,
        "safe": _printed,
        **dict.fromkeys(_EMPTY_LISTS, _empty(list)),
    },
    "Undefined": {
        "default": _default,
        **dict.fromkeys((*_EMPTY_LISTS, "list", "reverse", "sort"), _empty(list)),
        **dict.fromkeys(_EMPTY_TEXTS, _empty(str)),
        **dict.fromkeys(("first", "last", "max", "min"), _same),
        **dict.fromkeys(("length", "sum", "wordcount"), _empty(int)),
    },
    "Function": {},
}


def _built_in(value: Any, name: str) -> BuiltIn | None:
    kind = type_name(value)
    return BUILT_INS["Array" if kind == "Tuple" else kind].get(name)


def is_filter(name: str) -> bool:
    """Whether any type has a filter of that name."""
    name = _ALIASES.get(name, name)
    return any(name in built_ins for kind, built_ins in BUILT_INS.items() if kind != "Undefined")


class Method:
    """A method of a value, to be called."""

    def __init__(self, built_in: BuiltIn, name: str, value: Any) -> None:
        self._built_in, self._name, self._value = built_in, name, value

    def __call__(self, *given: Any, **named: Any) -> Any:
        """Call it."""
        return self._built_in(self._value, Arguments(self._name, given, named))


def method_of(value: Any, name: str) -> Method | None:
    """A method, None where the type has none of that name."""
    value = plain(value)
    built_in = _built_in(value, name)
    return None if built_in is None else Method(built_in, name, value)


def apply_filter(name: str, value: Any, *given: Any, **named: Any) -> Any:
    """`value | name(...)`.

    Raises:
        UnknownNameError: the type of the value has no such filter in llama.cpp.
    """
    name = _ALIASES.get(name, name)
    if not given and not named and name in _COERCED and not isinstance(value, Undefined):
        value = to_text(value)
    value = plain(value)
    built_in = _built_in(value, name)
    if built_in is None:
        of = f" of a value of type {type_name(value)}" if is_filter(name) else ""
        raise unknown(f"the filter '{name}'{of}")
    return built_in(value, Arguments(name, given, named))
