"""Keys with which a file says how its tensor types were chosen, where no rule of llama.cpp chose them.

What goes beyond llama.cpp is named in the file, never silent. Quantizing a file anew drops what it said of itself.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from quantize.containers.keys import KeyValue

__all__ = ["FISHER", "LISTED", "PREFIX", "choice_in_words", "predicted_kld", "type_keys"]

PREFIX = "moe_gguf."
"""Begins all keys that say how a file was quantized, beside llama.cpp's own."""

FISHER = "fisher"
"""The types were chosen by their predicted costs: half the mean of (gᵀ E x)² over tokens of a text."""
LISTED = "listed"
"""The types come from a list of tensors, of which nothing else is known."""

METHOD = f"{PREFIX}types.method"
N_TOKEN = f"{PREFIX}types.n_token"
PREDICTED_KLD = f"{PREFIX}types.predicted_kld"


def type_keys(
    method: str, n_token: int | None = None, predicted_kld: float | None = None
) -> tuple[KeyValue, ...]:
    """The keys of a choice of types.

    Args:
        method: `FISHER` or `LISTED`.
        n_token: tokens on which the costs were measured; None where that is not known.
        predicted_kld: mean KL divergence in nats per token that the choice is expected to have.
    """
    keys = [KeyValue.text(METHOD, method)]
    if n_token is not None:
        keys.append(KeyValue.u32(N_TOKEN, n_token))
    if predicted_kld is not None:
        keys.append(KeyValue.f32(PREDICTED_KLD, predicted_kld))
    return tuple(keys)


def predicted_kld(keys: Mapping[str, Any]) -> float | None:
    """The mean KL divergence that a file states, in nats per token; None where it states none.

    Args:
        keys: of the file, which a stranger may have written.
    """
    value = keys.get(PREDICTED_KLD)
    return value if isinstance(value, float) and math.isfinite(value) else None


def choice_in_words(keys: Mapping[str, Any]) -> str:
    """How a file says that its types were chosen; "" where it says nothing.

    Args:
        keys: of the file, which a stranger may have written.
    """
    method, n_token, kld = keys.get(METHOD), keys.get(N_TOKEN), predicted_kld(keys)
    if not isinstance(method, str):
        return ""
    parts = [method]
    if type(n_token) is int:
        parts.append(f"on {n_token:,} tokens")
    if kld is not None:
        parts.append(f"predicted KLD {kld:.3g}")
    return ", ".join(parts)
