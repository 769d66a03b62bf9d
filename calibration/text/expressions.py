"""Regular expressions of strangers: which of them cut any text in time that is in proportion to its length.

An expression that can match a text in many ways goes through all of them before it gives up. Those of known tokenizers
cannot, because of how they are made: alternatives in which nothing that has to match follows a part of any length. The
few that are made otherwise are listed.
"""

from __future__ import annotations

import re

__all__ = ["MAX_EXPRESSION", "is_tame"]

MAX_EXPRESSION = 2048  # characters; the longest that is known has about 700

_ESCAPE = r"\\(?:[rntsSdDwW]|[^A-Za-z0-9]|[pP]\{\^?[A-Za-z_]{1,24}\})"
_CLASS = rf"\[\^?(?:{_ESCAPE}|&&|[^\[\]\\&]|&(?!&))+\]"
_ATOM = rf"(?:{_ESCAPE}|{_CLASS}|[^\\\[\](){{}}?*+|^$.])"
_WORD = r"(?:'|[A-Za-z]|\[[A-Za-z]+\]){1,8}"
_WORDS = rf"\((?:\?i?:)?{_WORD}(?:\|{_WORD}){{0,15}}\)"  # contractions
_ENDING = rf"(?:{_ATOM}(?:[?*][+?]?|\{{0,[0-9]{{1,2}}\}})|{_WORDS}\?)"
_TAME = re.compile(
    rf"'?(?:{_WORDS}|(?:{_ATOM}\?\+?){{0,2}}(?:{_ATOM}(?:\{{[0-9]{{1,2}}\}})?){{0,12}}"
    rf"(?:{_ATOM}(?:[+*][+?]?|\{{[0-9]{{1,2}}(?:,[0-9]{{0,2}})?\}}\+?))?){_ENDING}{{0,3}}"
)
"""What may be absent, parts of one length, one part of any length, and what may be absent."""

_NOT_BEFORE_TEXT = re.compile(r"\\s(?:\+\+?|\{[0-9]{1,3}(?:,[0-9]{1,3})?\})?\(\?!\\S\)")  # of white space

_LEAD = r"[^\r\n\p{L}\p{N}]?"
_CASED = [
    rf"{_LEAD}{pair}"
    for upper, lower in (
        (r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"),
        (r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}]", r"[\p{Ll}\p{Lm}\p{Lo}]"),
        (r"((?=[\p{L}])([^a-z]))", r"((?=[\p{L}])([^A-Z]))"),
        (r"((?=[\p{L}\p{M}])([^a-z]))", r"((?=[\p{L}\p{M}])([^A-Z]))"),
    )
    for pair in (f"{upper}*{lower}+", f"{upper}+{lower}*")
]
_CONTRACTIONS = ("", *(f"{words}?" for words in ("(?i:'s|'t|'re|'ve|'m|'ll|'d)", "(?i:'[sdmt]|'ll|'ve|'re)")))
_STOPS = ".,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c"
_LISTED = {
    r"\s*[\r\n]+",
    r"\s*[\r\n]",
    r"\s*\r?\n",
    r"\s+$",
    f" ?[^(\\s|[{_STOPS}])]+",
    f"[^(\\s|[{_STOPS}])]+",
    r"<sentinel:[0-9]+>",
    r"(IMGIMG)((A|B|C|D|E|F|G|H|I){1,4})Z",
    r"([\t\n]|    |  )",
    r"[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+",
    r"(?=(\d{3})+(?!\d))",
    *(rf"{n}{{1,3}}(?=(?:{n}{{3}})*{end})" for n in (r"\d", r"\p{N}") for end in (r"\b", rf"(?!{n})", "$")),
    *(f"{cased}{words}" for cased in _CASED for words in _CONTRACTIONS),
    *(f"{cased}(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])?" for cased in _CASED),
}


def is_tame(expression: str) -> bool:
    """Whether an expression is short, and made of alternatives that never go back over a text."""
    if not 0 < len(expression) <= MAX_EXPRESSION:
        return False
    spelled = expression.replace("\r", r"\r").replace("\n", r"\n").replace("\t", r"\t")
    return all(
        part in _LISTED or _NOT_BEFORE_TEXT.fullmatch(part) or _TAME.fullmatch(part)
        for part in _alternatives(spelled)
    )


def _alternatives(expression: str) -> list[str]:
    """The expression cut at each `|` that stands in no group and no class."""
    parts, start, depth, in_class, position = [], 0, 0, 0, 0
    while position < len(expression):
        char = expression[position]
        if char == "\\":
            position += 1
        elif char == "[":
            in_class += 1
        elif char == "]":
            in_class = max(in_class - 1, 0)
        elif in_class:
            pass
        elif char in "()":
            depth += 1 if char == "(" else -1
        elif char == "|" and depth == 0:
            parts.append(expression[start:position])
            start = position + 1
        position += 1
    return [*parts, expression[start:]]
