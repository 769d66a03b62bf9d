"""The process in which llama.cpp loads one finished file and answers once."""

from __future__ import annotations

import math
import urllib.error
from typing import Any

from gguf_export.checking.llama_server import answer, loaded, post

__all__ = ["main"]

SECONDS = 600  # for one answer of a large model on a processor


def main(file: str, n_thread: int) -> None:
    """Load a GGUF file, apply its template to the dialogue where it has one, and generate some tokens."""
    answer(lambda asked: _generated(loaded(file, n_ctx=512, n_thread=n_thread), asked))


def _generated(server: Any, asked: dict[str, Any]) -> dict[str, Any]:
    try:
        prompt = asked["plain"]
        if asked["has_template"]:
            body = {"messages": asked["messages"], "add_generation_prompt": True}
            prompt = post(server, "/apply-template", body, SECONDS)["prompt"]
        body = {
            "prompt": prompt,
            "n_predict": asked["n_token"],
            "temperature": 0,
            "n_probs": 1,
            "cache_prompt": False,
            "return_tokens": True,
        }
        made = post(server, "/completion", body, SECONDS)
    except urllib.error.HTTPError as refusal:
        return {"fault": refusal.read().decode("utf-8", "replace")[:4000]}
    told = made.get("completion_probabilities", [])
    scores = [token.get("logprob") for token in told if isinstance(token, dict)]
    is_finite = all(isinstance(score, int | float) and math.isfinite(score) for score in scores)
    return {"text": made["content"], "n_token": len(made.get("tokens", [])), "is_finite": is_finite}
