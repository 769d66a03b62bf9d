"""The process in which llama.cpp's speed with one file is measured."""

from __future__ import annotations

from typing import Any

from gguf_export.checking.llama_server import answer, loaded

__all__ = ["main"]

N_RUN = 3
TOKENS = range(20, 220)
"""Ids that every vocabulary has; which tokens they are makes no difference to the time."""


def main(file: str, n_thread: int, n_prompt: int, n_generated: int) -> None:
    """Load a GGUF file, and tell tokens per second of some runs behind a first one that warms up."""
    answer(lambda _: _timed(loaded(file, n_prompt + n_generated, n_thread), n_prompt, n_generated))


def _timed(server: Any, n_prompt: int, n_generated: int) -> list[dict[str, float]]:
    runs = []
    for run in range(N_RUN + 1):
        prompt = [TOKENS[(run + index * index) % len(TOKENS)] for index in range(n_prompt - 1)]
        timings = _timings(server, prompt, n_generated if run else 1)
        runs.append({"pp": timings["prompt_per_second"], "tg": timings["predicted_per_second"]})
    return runs[1:]


def _timings(server: Any, prompt: list[int], n_generated: int) -> dict[str, float]:
    told = server.handle_completions(
        {
            "prompt": prompt,
            "max_tokens": n_generated,
            "temperature": 0,
            "ignore_eos": True,
            "cache_prompt": False,
        }
    )
    timings: dict[str, float] = told["timings"]
    return timings
