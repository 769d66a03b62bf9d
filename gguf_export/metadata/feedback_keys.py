"""Keys with which a file says that error feedback chose its codes: what llama.cpp's own encoder would not have made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gguf_export.metadata.type_keys import PREFIX
from quantize.containers.keys import KeyValue

__all__ = ["feedback_in_words", "feedback_keys", "has_feedback"]

METHOD = f"{PREFIX}feedback.method"
ROUNDS = f"{PREFIX}feedback.rounds"
N_TOKEN = f"{PREFIX}feedback.n_token"
TEXT = f"{PREFIX}feedback.text"

ASYMMETRIC = "asymmetric"
"""Columns are rounded with error feedback toward what the original has, from what the quantized model sees."""


def feedback_keys(rounds: int, n_token: int, texts: Sequence[str]) -> tuple[KeyValue, ...]:
    """The keys of a file that is made with error feedback.

    Args:
        rounds: of coordinate descent.
        n_token: tokens of the text.
        texts: its names.
    """
    return (
        KeyValue.text(METHOD, ASYMMETRIC),
        KeyValue.u32(ROUNDS, rounds),
        KeyValue.u32(N_TOKEN, n_token),
        KeyValue.text(TEXT, " + ".join(texts)),
    )


def has_feedback(keys: Mapping[str, Any]) -> bool:
    """Whether a file states, by its keys, that error feedback chose its codes."""
    return isinstance(keys.get(METHOD), str)


def feedback_in_words(keys: Mapping[str, Any]) -> str:
    """How a file says that error feedback chose its codes; "" where it says nothing.

    Args:
        keys: of the file, which a stranger may have written.
    """
    if not has_feedback(keys):
        return ""
    n_token = keys.get(N_TOKEN)
    return f"{keys[METHOD]} error feedback" + (f" on {n_token:,} tokens" if type(n_token) is int else "")
