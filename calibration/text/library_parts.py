"""What of a tokenizer.json the tokenizers library is given beside tokens and merges: known steps, few and short.

The library obeys whatever stands there: a dozen normalizers make gigabytes of a line, and an expression that goes back
and forth ends in a panic. So its steps are copied here one by one: those that llama.cpp's byte-level tokenizers have,
with parameters that cannot let a text grow. Anything else is refused before the library sees it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from calibration.text.expressions import is_tame
from quantize.containers.untrusted import quoted

__all__ = ["UnknownStepError", "decoder", "normalizer", "pre_tokenizer", "readable_steps"]

MAX_STEPS = 16  # of one kind; the most that a known tokenizer has is seven
MAX_PATTERN = 64  # characters of a plain text that is looked for
_BEHAVIORS = ("Removed", "Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous")

Check = Callable[[Any], bool]


class UnknownStepError(Exception):
    """A step that no known tokenizer has; the message goes on after the name of the file."""


def readable_steps(value: object, inner: str) -> list[dict[str, Any]]:
    """The steps of a part of tokenizer.json in their order, those of sequences (under the key `inner`) in their place.

    None where the part is no known tokenizer's: something else than objects, or more than `MAX_STEPS`.
    """
    try:
        return _steps(value, inner)
    except UnknownStepError:
        return []


def _steps(value: object, inner: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    waiting = [] if value is None else [value]
    n_seen = 0
    while waiting:
        step = waiting.pop()
        n_seen += 1
        if n_seen > 2 * MAX_STEPS:  # sequences count, too
            raise UnknownStepError(f"has more than {MAX_STEPS} {inner}")
        if not isinstance(step, dict):
            raise UnknownStepError(f"has {quoted(step)} among its {inner}")
        if step.get("type") != "Sequence":
            found.append(step)
            if len(found) > MAX_STEPS:
                raise UnknownStepError(f"has more than {MAX_STEPS} {inner}")
            continue
        nested = step.get(inner)
        if not isinstance(nested, list):
            raise UnknownStepError(f"has a sequence without {inner}")
        waiting += reversed(nested[: MAX_STEPS + 1])
    return found


def _shown(value: Any) -> Any:
    """The text of a pattern, which the file writes as an object."""
    return next(iter(value.values())) if isinstance(value, dict) and len(value) == 1 else value


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool)


def _is_behavior(value: Any) -> bool:
    return value in _BEHAVIORS if isinstance(value, str) else False


def _is_char(value: Any) -> bool:
    return isinstance(value, str) and len(value) == 1


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value <= MAX_PATTERN


def _is_plain(value: Any) -> bool:
    """A short text of characters that no other step unfolds."""
    return (
        isinstance(value, str) and len(value) <= MAX_PATTERN and all(c.isascii() or c == "▁" for c in value)
    )


def _is_some_plain(value: Any) -> bool:
    """The same, and not empty: of an empty one before a text, the library panics."""
    return _is_plain(value) and value != ""


def _is_text_pattern(value: Any) -> bool:
    text = value.get("String") if isinstance(value, dict) and len(value) == 1 else None
    return isinstance(text, str) and 0 < len(text) <= MAX_PATTERN


def _is_pattern(value: Any) -> bool:
    if _is_text_pattern(value):
        return True
    expression = value.get("Regex") if isinstance(value, dict) and len(value) == 1 else None
    return isinstance(expression, str) and is_tame(expression)


_REPLACE: dict[str, Check] = {"pattern": _is_text_pattern, "content": _is_plain}
_BYTE_LEVEL: dict[str, Check] = {
    "add_prefix_space": _is_flag,
    "trim_offsets": _is_flag,
    "use_regex": _is_flag,
}

# kind of step -> its parameters
_NORMALIZERS: dict[str, dict[str, Check]] = {
    "NFC": {},
    "NFD": {},
    "NFKC": {},
    "NFKD": {},
    "Nmt": {},
    "Lowercase": {},
    "StripAccents": {},
    "Strip": {"strip_left": _is_flag, "strip_right": _is_flag},
    "Prepend": {"prepend": _is_some_plain},
    "Replace": _REPLACE,
    "ByteLevel": {},
}
_PRE_TOKENIZERS: dict[str, dict[str, Check]] = {
    "ByteLevel": _BYTE_LEVEL,
    "Split": {"pattern": _is_pattern, "behavior": _is_behavior, "invert": _is_flag},
    "Digits": {"individual_digits": _is_flag},
    "Punctuation": {"behavior": _is_behavior},
    "Whitespace": {},
    "WhitespaceSplit": {},
    "UnicodeScripts": {},
}
_DECODERS: dict[str, dict[str, Check]] = {
    "ByteLevel": _BYTE_LEVEL,
    "ByteFallback": {},
    "Fuse": {},
    "Replace": _REPLACE,
    "Strip": {"content": _is_char, "start": _is_count, "stop": _is_count},
}
_REPEATED = ("Replace", "Split", "Digits", "Punctuation")
"""Kinds that may come more than once: applied again, they do not make a text longer."""


def normalizer(value: object) -> dict[str, Any] | None:
    """The normalizer that stands in a tokenizer.json, copied.

    Raises:
        UnknownStepError: no known tokenizer has such a one.
    """
    return _copied(value, "normalizer", "normalizers", _NORMALIZERS)


def pre_tokenizer(value: object) -> dict[str, Any] | None:
    """The pre-tokenizer that stands in a tokenizer.json, copied.

    Raises:
        UnknownStepError: no known tokenizer has such a one.
    """
    return _copied(value, "pre-tokenizer", "pretokenizers", _PRE_TOKENIZERS)


def decoder(value: object) -> dict[str, Any] | None:
    """The decoder that stands in a tokenizer.json, copied.

    Raises:
        UnknownStepError: no known tokenizer has such a one.
    """
    return _copied(value, "decoder", "decoders", _DECODERS)


def _copied(
    value: object, part: str, inner: str, known: Mapping[str, Mapping[str, Check]]
) -> dict[str, Any] | None:
    """The steps of one part as the library reads them; parameters that it does not know are left out."""
    copies: list[dict[str, Any]] = []
    seen: set[str] = set()
    for step in _steps(value, inner):
        kind = step.get("type")
        if not isinstance(kind, str) or kind not in known:
            raise UnknownStepError(
                f"has a {part} {quoted(kind)}, which llama.cpp's byte-level tokenizers do not have"
            )
        form = "a Unicode form" if kind.startswith("NF") else kind
        if form in seen and kind not in _REPEATED:
            raise UnknownStepError(f"has more than one {part} {kind}")
        seen.add(form)
        copy: dict[str, Any] = {"type": kind}
        for name, is_known in known[kind].items():
            if name not in step:
                continue  # the library knows a default, or refuses the lack
            if not is_known(step[name]):
                raise UnknownStepError(
                    f"has a {part} {kind} with a {name} that llama.cpp's byte-level tokenizers do not have: "
                    f"{quoted(_shown(step[name]))}"
                )
            copy[name] = step[name]
        if kind == "Replace" and len(copy.get("content", "")) > len(
            copy.get("pattern", {}).get("String", "")
        ):
            raise UnknownStepError(f"has a {part} {kind} that makes texts longer")
        copies.append(copy)
    if not copies:
        return None
    return copies[0] if len(copies) == 1 else {"type": "Sequence", inner: copies}
