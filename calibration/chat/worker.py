"""The process in which a stranger's template runs: a request on its standard input, the answer on its standard output.

Nothing but this room and jinja2 is imported here, so that it starts within a tenth of a second.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from calibration.chat.abilities import Abilities, Message, adapted, find_abilities
from calibration.chat.environment import Program
from calibration.chat.faults import TemplateFault

__all__ = ["main"]


def main(seconds: int, n_bytes: int) -> None:
    """Answer one request: the template's abilities, names that llama.cpp lacks, and a text or fault per dialogue."""
    _limit(seconds, n_bytes)
    request = json.load(sys.stdin)
    try:
        answer = _answer(request)
    except TemplateFault as fault:
        answer = {"fault": _told(fault)}
    json.dump(answer, sys.stdout)


def _limit(seconds: int, n_bytes: int) -> None:
    """Bound this process's time on the processor and its memory, where the system can."""
    try:
        import resource  # noqa: PLC0415 - Windows has none
    except ImportError:
        return
    for kind, most in (
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_AS, n_bytes),
        (resource.RLIMIT_CORE, 0),
    ):
        hard = resource.getrlimit(kind)[1]
        limit = most if hard == resource.RLIM_INFINITY else min(most, hard)
        try:
            resource.setrlimit(kind, (limit, hard))
        except (ValueError, OSError):
            continue  # macOS does not bound memory so


def _answer(request: dict[str, Any]) -> dict[str, Any]:
    program = Program(request["template"], request["now"])
    today = time.localtime(request["now"])
    fixed = {  # common/chat.cpp: common_chat_template_direct_apply_impl, common_chat_extra_context
        "bos_token": request["bos"],
        "eos_token": request["eos"],
        "enable_thinking": True,
        "datetime": time.strftime("%b %d %Y", today),
        "date_string": time.strftime("%d %b %Y", today),
    }

    def run(messages: Sequence[Message], tools: Sequence[Any] | None, generation: bool = True) -> str:
        values: dict[str, Any] = {**fixed, "messages": messages, "add_generation_prompt": generation}
        if not generation:
            del values["add_generation_prompt"]
        if tools is not None:
            values["tools"] = tools
        return program.run(values)

    abilities = find_abilities(run)
    results = []
    for dialogue in request["dialogues"]:
        results.append(_result(run, dialogue, abilities))
    return {"abilities": asdict(abilities), "unknown": program.unknown, "results": results}


def _result(run: Any, dialogue: dict[str, Any], abilities: Abilities) -> dict[str, Any]:
    messages = dialogue["messages"]
    if not dialogue["as_given"]:
        messages = adapted(messages, abilities)
    try:
        return {"text": run(messages, dialogue["tools"], dialogue["generation"])}
    except TemplateFault as fault:
        return {"fault": _told(fault)}


def _told(fault: TemplateFault) -> dict[str, str]:
    return {
        "kind": fault.kind,
        "message": " ".join(str(fault).split())[:300],
    }  # a stranger may have written it
