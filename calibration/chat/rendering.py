"""Templates run in a child process with limits, so that the worst that a stranger's program can do is to fail."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from calibration.chat.abilities import Abilities
from calibration.chat.dialogues import Dialogue
from calibration.chat.faults import FaultKind

__all__ = ["ChatTemplate", "Fault", "Rendered", "render"]

SECONDS = 5  # on the processor for a template and a few dialogues
SECONDS_PER_MB = 10  # more for many of them
MEMORY = 2**29  # bytes; jinja2 itself takes some 50 MB
MEMORY_PER_BYTE = 40  # more for many dialogues
_BOOT = "import sys; sys.path[:0] = {paths!r}; from calibration.chat.worker import main; main({seconds}, {n_bytes})"


@dataclass(frozen=True)
class ChatTemplate:
    """A template, where it stands, and the texts of the tokens that it may write."""

    text: str
    place: str
    """The file and key that hold it, in messages."""
    bos: str = ""
    eos: str = ""


@dataclass(frozen=True)
class Fault:
    """Why a template did not work, in words for one line."""

    kind: FaultKind
    message: str


@dataclass(frozen=True)
class Rendered:
    """What a template made of dialogues.

    fault: of the template as a whole; then there is nothing else.
    texts: a text or a fault for each dialogue.
    abilities: see `Abilities`.
    unknown: names in the template that llama.cpp lacks, whether they were reached or not.
    """

    fault: Fault | None = None
    texts: tuple[str | Fault, ...] = ()
    abilities: Abilities = field(default_factory=Abilities)
    unknown: tuple[str, ...] = ()


def render(
    template: ChatTemplate,
    dialogues: Sequence[Dialogue],
    *,
    as_given: bool = False,
    now: float | None = None,
) -> Rendered:
    """Apply a template to dialogues as llama.cpp would.

    Args:
        template: the template.
        dialogues: the dialogues.
        as_given: the template gets the messages as they are, not adapted to its abilities.
        now: the time that it is told, in seconds since the epoch; by default the present one.
    """
    request = json.dumps(
        {
            "template": template.text,
            "bos": template.bos,
            "eos": template.eos,
            "now": time.time() if now is None else now,
            "dialogues": [
                {
                    "messages": dialogue.messages,
                    "tools": dialogue.tools,
                    "generation": dialogue.generation,
                    "as_given": as_given,
                }
                for dialogue in dialogues
            ],
        }
    ).encode()
    seconds = SECONDS + SECONDS_PER_MB * len(request) // 2**20
    return _answered(request, seconds, MEMORY + MEMORY_PER_BYTE * len(request))


def _answered(request: bytes, seconds: int, n_bytes: int) -> Rendered:
    """The answer of a child process that may take so many seconds on the processor and bytes of memory."""
    home = str(Path(__file__).parents[2])
    paths = [home, *(path for path in sys.path if path)]
    boot = _BOOT.format(paths=paths, seconds=seconds, n_bytes=n_bytes)
    command = [sys.executable, "-I", "-S", "-X", "utf8", "-c", boot]
    try:
        done = subprocess.run(
            command,
            input=request,
            capture_output=True,
            timeout=4 * seconds + 10,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Rendered(Fault("limit", f"it takes more than {seconds} seconds"))
    if done.returncode == 0:
        return _read(json.loads(done.stdout))
    if done.returncode in (-24, -9):  # SIGXCPU, SIGKILL
        return Rendered(Fault("limit", f"it takes more than {seconds} seconds"))
    said = done.stderr.decode("utf-8", "replace").strip().splitlines()
    if done.returncode < 0 or (said and said[-1].startswith("MemoryError")):
        return Rendered(Fault("limit", "it takes too much memory, or calls itself too often"))
    raise RuntimeError(f"the process for chat templates ended with {done.returncode}: {said[-1:]}")


def _read(answer: dict[str, Any]) -> Rendered:
    if "fault" in answer:
        return Rendered(Fault(**answer["fault"]))
    texts = [
        Fault(**entry["fault"]) if "fault" in entry else _valid(entry["text"]) for entry in answer["results"]
    ]
    return Rendered(None, tuple(texts), Abilities(**answer["abilities"]), tuple(answer["unknown"]))


def _valid(text: str) -> str:
    """Text without halves of surrogate pairs, which stand for bytes of a template that are not UTF-8."""
    return text.encode("utf-8", "replace").decode("utf-8")
