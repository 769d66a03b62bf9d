"""The values that a template computes with, and how llama.cpp tells their types apart and writes them.

Source: common/jinja/value.h and value.cpp of llama.cpp. Lengths and indices of texts count characters here and bytes
there, which differs outside of ASCII only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from jinja2 import Undefined
from jinja2.utils import Namespace

from calibration.chat.faults import TemplateFault, TooMuchError, UnknownNameError

__all__ = [
    "MAX_CHARS",
    "bounded",
    "compared",
    "items_of",
    "plain",
    "printed",
    "refuse_length",
    "to_json",
    "to_text",
    "type_name",
    "unknown",
]

MAX_CHARS = 2**24  # of a text that a template makes
_ESCAPES = {'"': '\\"', "\\": "\\\\", "\b": "\\b", "\f": "\\f", "\n": "\\n", "\r": "\\r", "\t": "\\t"}


def type_name(value: Any) -> str:
    """llama.cpp's name of a value's type."""
    if isinstance(value, Undefined):
        return "Undefined"
    if value is None:
        return "None"
    if isinstance(value, bool):
        return "Boolean"
    for kind, name in (
        (int, "Integer"),
        (float, "Float"),
        (str, "String"),
        (list, "Array"),
        (tuple, "Tuple"),
    ):
        if isinstance(value, kind):
            return name
    return "Object" if isinstance(value, (dict, Namespace)) else "Function"


def bounded(text: str) -> str:
    """The text, if it is not too long.

    Raises:
        TooMuchError: it has more than `MAX_CHARS` characters.
    """
    refuse_length(len(text))
    return text


def refuse_length(n_char: int) -> None:
    """Refuse a text of so many characters, before it is made.

    Raises:
        TooMuchError: they are more than `MAX_CHARS`.
    """
    if n_char > MAX_CHARS:
        raise TooMuchError(f"it makes a text of more than {MAX_CHARS} characters")


def plain(value: Any) -> Any:
    """A namespace as the object that it is in llama.cpp; other values as they are."""
    if isinstance(value, Namespace):
        attributes: dict[str, Any] = object.__getattribute__(value, "_Namespace__attrs")
        return attributes
    return value


def items_of(value: Any, n_target: int) -> Any:
    """What a `for` loop with so many loop variables runs over (for_statement::execute_impl)."""
    value = plain(value)
    if isinstance(value, Undefined):
        return []
    if isinstance(value, dict):
        return list(value.items()) if n_target > 1 else list(value)
    if not isinstance(value, (list, tuple)):
        raise TemplateFault(f"a loop over a value of type {type_name(value)}")
    return value


def to_text(value: Any) -> str:
    """A value as text (as_string of each type).

    Raises:
        TemplateFault: an undefined value or a function, which have none.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, bool) or value is None:
        return str(value)
    if isinstance(value, float):
        text = f"{value:.6f}".rstrip("0")
        return f"{text}0" if text.endswith(".") else text
    if isinstance(value, int):
        return str(value)
    value = plain(value)
    if isinstance(value, (list, tuple)):
        comma = "," if isinstance(value, tuple) and len(value) == 1 else ""
        inner = ", ".join(map(_quoted, value)) + comma
        return bounded(f"({inner})" if isinstance(value, tuple) else f"[{inner}]")
    if isinstance(value, dict):
        inner = ", ".join(f"{_quoted(key)}: {_quoted(entry)}" for key, entry in value.items())
        return bounded(f"{{{inner}}}")
    raise TemplateFault(f"a value of type {type_name(value)} is no text")


def _quoted(value: Any) -> str:
    if isinstance(value, str):
        return to_json(value) if "'" in value else f"'{value}'"
    return "Undefined" if isinstance(value, Undefined) else to_text(value)


def printed(value: Any) -> str:
    """What an output expression writes (gather_string_parts): nothing of what is no text, number or list."""
    if isinstance(value, (str, bool, int, float)):
        return to_text(value)
    if isinstance(value, (list, tuple)):
        return bounded("".join(map(printed, value)))
    return ""


def compared(left: Any, right: Any, sign: str) -> bool:
    """`==`, `!=`, `<`, `>` or `>=` of two numbers or texts; anything else is false (value_compare)."""
    if isinstance(left, bool) or isinstance(right, bool):
        same = isinstance(left, bool) and isinstance(right, bool)
        return same and {"==": left == right, "!=": left != right}.get(sign, False)
    numbers = isinstance(left, (int, float)) and isinstance(right, (int, float))
    if not numbers:
        if not isinstance(left, (str, int, float)) or not isinstance(right, (str, int, float)):
            return False
        left, right = to_text(left), to_text(right)
    signs: dict[str, Callable[[], bool]] = {
        "==": lambda: left == right,
        "!=": lambda: left != right,
        "<": lambda: left < right,
        ">": lambda: left > right,
        ">=": lambda: left >= right,
    }
    return signs[sign]()


def to_json(  # noqa: PLR0911 - one for each type
    value: Any, indent: int = -1, separators: Sequence[str] = (", ", ": "), level: int = 0
) -> str:
    """A value as JSON, as the filter `tojson` spells it (value_to_json); Python's json spells floats otherwise."""
    value = plain(value)
    if value is None or isinstance(value, Undefined):
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, str):
        return f'"{"".join(map(_escaped, value))}"'
    if not isinstance(value, (list, tuple, dict)):
        return "null"
    brackets = "{}" if isinstance(value, dict) else "[]"
    if not value:
        return brackets
    if level > 200:
        raise TooMuchError("values lie in one another more than 200 deep")
    inner, new_line = " " * max(indent, 0) * (level + 1), "\n" if indent >= 0 else ""
    if isinstance(value, dict):
        parts = [
            f"{inner}{to_json(to_text(key))}{separators[1]}{to_json(entry, indent, separators, level + 1)}"
            for key, entry in value.items()
        ]
    else:
        parts = [inner + to_json(entry, indent, separators, level + 1) for entry in value]
    joined = f"{separators[0]}{new_line}".join(parts)
    return bounded(f"{brackets[0]}{new_line}{joined}{new_line}{' ' * max(indent, 0) * level}{brackets[1]}")


def _escaped(char: str) -> str:
    if char in _ESCAPES:
        return _ESCAPES[char]
    return f"\\u{ord(char):04x}" if char < " " else char


def unknown(what: str) -> UnknownNameError:
    """The fault of a name that llama.cpp lacks."""
    return UnknownNameError(f"{what}, which llama.cpp does not know")
