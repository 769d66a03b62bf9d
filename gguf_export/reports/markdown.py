"""Texts and tables in Markdown, for model cards: a name of a stranger stays a name, whatever it holds."""

from __future__ import annotations

import re
from collections.abc import Sequence

from quantize.containers.untrusted import printable

__all__ = ["markdown_text", "table_line"]

MARKS = re.compile(
    r"[&<>|\\`*\[\]!~$@]|(?<![^\W_])_|_(?![^\W_])|(?<=[A-Za-z]):(?=//)|(?<=\bwww)\.", re.IGNORECASE
)
"""What Markdown may take for more than a character: HTML, the walls of a table, code, emphasis, links, images, strikes,
mathematics, mentions. An underscore within a word, as in Q4_K_M, is one everywhere."""


def markdown_text(text: str) -> str:
    """A text on one line, to be shown as it is: marks become character references, which never begin anything."""
    return MARKS.sub(lambda mark: f"&#{ord(mark[0])};", printable(" ".join(text.split())))


def table_line(cells: Sequence[str]) -> str:
    """A line of a table; its cells are Markdown."""
    return f"| {' | '.join(cells)} |"
