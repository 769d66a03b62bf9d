"""What can go wrong while a template runs, told apart."""

from __future__ import annotations

from typing import Literal

__all__ = ["FaultKind", "RefusedError", "TemplateFault", "TooMuchError", "UnknownNameError"]

FaultKind = Literal["syntax", "unknown", "refused", "limit", "failed"]
"""syntax: it cannot be parsed. unknown: llama.cpp's engine lacks something it uses. refused: it raised an exception on
purpose. limit: it takes too much time, memory or output. failed: any other error."""


class TemplateFault(Exception):  # noqa: N818 - the word of this room
    """A fault of a template, in words for one line."""

    kind: FaultKind = "failed"


class UnknownNameError(TemplateFault):
    """A name or an argument that llama.cpp's engine does not know."""

    kind = "unknown"


class RefusedError(TemplateFault):
    """The template called `raise_exception`."""

    kind = "refused"


class TooMuchError(TemplateFault):
    """More than a template may take."""

    kind = "limit"
