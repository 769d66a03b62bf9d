"""The methods of texts (common/jinja/value.cpp: value_string_t::get_builtins)."""

from __future__ import annotations

import string
from collections.abc import Callable, Mapping
from typing import Any

from calibration.chat.arguments import Arguments
from calibration.chat.faults import TemplateFault
from calibration.chat.values import bounded, refuse_length, to_text, unknown

__all__ = ["METHODS"]

_UPPER = str.maketrans(string.ascii_lowercase, string.ascii_uppercase)
_LOWER = str.maketrans(string.ascii_uppercase, string.ascii_lowercase)
_SPACE = " \t\n\r\v\f"


def _title(text: str, _arguments: Arguments) -> str:
    made, begins = [], True
    for char in text:
        is_space = char in _SPACE
        made.append(char if is_space else char.translate(_UPPER if begins else _LOWER))
        begins = is_space
    return "".join(made)


def _stripped(strip: Callable[[str, str], str]) -> Callable[[str, Arguments], str]:
    def method(text: str, arguments: Arguments) -> str:
        chars = arguments.at(0, "chars", None)
        return strip(text, _SPACE if chars is None else to_text(chars))

    return method


def _split(cut: Callable[[str, str, int], list[str]]) -> Callable[[str, Arguments], list[str]]:
    """`split` and `rsplit`; without a separator at each space, as llama.cpp does, and not at runs of white space."""

    def method(text: str, arguments: Arguments) -> list[str]:
        separator = to_text(arguments.at(0, "", " "))
        if not separator:
            raise TemplateFault("the separator is empty")
        most = arguments.at(1, "", -1)
        return cut(text, separator, most if isinstance(most, int) else -1)

    return method


def _replace(text: str, arguments: Arguments) -> str:
    old, new = arguments.need(0, str), arguments.need(1, str)
    if arguments.at(2, "", -1) > 0:
        raise unknown("replace with a count")
    refuse_length(len(text) + text.count(old) * len(new))
    return text.replace(old, new)


def _format(text: str, arguments: Arguments) -> str:
    pieces = text.split("{}")
    if any("{" in piece for piece in pieces):
        raise unknown("format with anything but {}")
    made = [pieces[0]]
    for place, piece in enumerate(pieces[1:]):
        made += [to_text(arguments.need(place)), piece]
    return bounded("".join(made))


def _int(text: str, arguments: Arguments) -> int:
    base = arguments.at(1, "base", 10)
    if not isinstance(base, int) or (base != 0 and not 2 <= base <= 36):
        raise TemplateFault("the base of int is 0 or from 2 to 36")
    digits = text.strip(_SPACE)
    number = digits[: len(digits) - len(digits.lstrip("+-"))]
    for char in digits[len(number) :]:
        if char not in string.ascii_letters + string.digits or not _is_number(number + char, base):
            break
        number += char
    if not _is_number(number, base):
        default = arguments.at(0, "default", 0)
        return default if isinstance(default, int) else 0
    return int(number, base)


def _is_number(text: str, base: int) -> bool:
    try:
        return len(text) < 100 and int(text, base) is not None
    except ValueError:
        return False


def _float(text: str, arguments: Arguments) -> float:
    try:
        return float(text)
    except ValueError:
        return float(arguments.at(0, "default", 0.0))


def _indent(text: str, arguments: Arguments) -> str:
    width = arguments.at(0, "width", 4)
    indent = " " * min(width, 4096) if isinstance(width, int) else to_text(width)
    first, blank = arguments.flag(1, "first"), arguments.flag(2, "blank")
    lines = text.split("\n")
    ends = len(lines) > 1 and not lines[-1]
    kept = lines[:-1] if ends else lines
    refuse_length(len(lines) * len(indent) + len(text))
    made = [
        indent + line if (first if not number else line or blank) else line
        for number, line in enumerate(kept)
    ]
    return "\n".join(made) + ("\n" + (indent if blank else "") if ends else "")


def _starts(text: str, arguments: Arguments) -> bool:
    return text.startswith(str(arguments.need(0, str)))


def _ends(text: str, arguments: Arguments) -> bool:
    return text.endswith(str(arguments.need(0, str)))


def _slice(text: str, arguments: Arguments) -> str:
    step = arguments.at(2, "", None)
    if step == 0:
        raise TemplateFault("a slice of step 0")
    return text[arguments.need(0, int) : arguments.at(1, "", None) : step]


METHODS: Mapping[str, Callable[[Any, Arguments], Any]] = {
    "upper": lambda text, _arguments: text.translate(_UPPER),
    "lower": lambda text, _arguments: text.translate(_LOWER),
    "strip": _stripped(str.strip),
    "rstrip": _stripped(str.rstrip),
    "lstrip": _stripped(str.lstrip),
    "title": _title,
    "capitalize": lambda text, _arguments: text[:1].translate(_UPPER) + text[1:].translate(_LOWER),
    "length": lambda text, _arguments: len(text),
    "startswith": _starts,
    "endswith": _ends,
    "split": _split(str.split),
    "rsplit": _split(str.rsplit),
    "replace": _replace,
    "format": _format,
    "int": _int,
    "float": _float,
    "slice": _slice,
    "indent": _indent,
}
