"""The smoke test: llama.cpp loads a finished file, applies its template to a dialogue, and generates some tokens."""

from __future__ import annotations

import json
import subprocess
import unicodedata
from pathlib import Path
from typing import Any

from calibration.text.chat_templates import KEY
from gguf_export.checking.llama_process import ask, is_installed
from quantize.containers.untrusted import quoted
from quantize.engine import n_processor
from quantize.exceptions import MoeGgufError
from quantize.sources.gguf_file import GGUFFile

__all__ = ["MESSAGES", "NOT_RUN", "N_TOKEN", "PASSED", "has_failed", "smoke_test"]

N_TOKEN = 32
SECONDS = 1800  # to load a large file from a slow disk, and to answer
PASSED, NOT_RUN = "passed", "not run"
MESSAGES = (
    {"role": "user", "content": "Why is the sky blue?"},
    {"role": "assistant", "content": "Air scatters short waves of light more than long ones."},
    {"role": "user", "content": "And at sunset?"},
)
PLAIN = "The sky is blue because"
"""What a model without a chat template goes on with."""


def has_failed(verdict: str) -> bool:
    """Whether a verdict of `smoke_test` is neither `PASSED` nor `NOT_RUN`."""
    return verdict not in (PASSED, NOT_RUN)


def smoke_test(path: Path) -> str:
    """Let llama.cpp write with a file, in a process of its own.

    Returns:
        `PASSED`, `NOT_RUN` where llama.cpp is not installed, or why the file did not work, in one line.
    """
    if not is_installed():
        return NOT_RUN
    try:
        has_template = bool(GGUFFile(path).keys.get(KEY))
    except MoeGgufError as fault:
        return f"failed: {fault.message}"
    asked = {
        "messages": MESSAGES,
        "plain": PLAIN,
        "has_template": has_template,
        "n_token": N_TOKEN,
    }
    try:
        done = ask(
            "gguf_export.releasing.smoke_worker", [str(path.absolute()), n_processor()], asked, SECONDS
        )
    except subprocess.TimeoutExpired:
        return f"failed: llama.cpp does not answer within {SECONDS} seconds"
    said = done.stderr.decode("utf-8", "replace").replace(str(path.absolute()), path.name)
    if done.returncode != 0:
        last = next((line for line in reversed(said.splitlines()) if line.strip()), "")
        return f"failed: llama.cpp ended with status {done.returncode}: {quoted(last.strip()[-200:])}"
    return _judged(json.loads(done.stdout))


def _judged(answer: dict[str, Any]) -> str:
    """The verdict on what was generated."""
    if "fault" in answer:
        return f"failed: llama.cpp refuses the dialogue: {quoted(' '.join(answer['fault'].split())[:200])}"
    if not answer["is_finite"]:
        return "failed: the scores of the tokens are no numbers"
    if not answer["n_token"]:
        return "failed: no token was generated"
    text = answer["text"].rstrip("\ufffd")  # the last token may end within a character
    strange = sum(_is_strange(char) for char in text)
    if 2 * strange > len(text):
        return f"failed: what was generated is no text: {quoted(text[:60])}"
    return PASSED


def _is_strange(char: str) -> bool:
    return char == "\ufffd" or (unicodedata.category(char)[0] == "C" and char not in "\n\r\t")
