"""The process in which llama.cpp itself applies a model's chat template."""

from __future__ import annotations

import urllib.error
from typing import Any

from gguf_export.checking.llama_server import answer, loaded, post

__all__ = ["main"]

SECONDS = 20  # for one answer


def main(file: str) -> None:
    """Load a GGUF file and apply its template to dialogues by way of llama-server's `/apply-template`."""

    def applied(dialogues: list[dict[str, Any]]) -> list[dict[str, str]]:
        server = loaded(file, n_ctx=64)
        return [_applied(server, dialogue) for dialogue in dialogues]

    answer(applied)


def _applied(server: Any, dialogue: dict[str, Any]) -> dict[str, str]:
    try:
        return {"text": post(server, "/apply-template", dialogue, SECONDS)["prompt"]}
    except urllib.error.HTTPError as refusal:
        return {"fault": refusal.read().decode("utf-8", "replace")[:4000]}
