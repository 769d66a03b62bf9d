"""What a template can write, found by trial as llama.cpp does, and dialogues adapted to it.

llama.cpp does not give every message to a template as it came (common/chat.cpp: messages_inp_normalizer, workaround;
common/jinja/caps.cpp): a system message goes into the next one where the template has no place for it, contents become
lists of parts, and the arguments of tool calls objects, where the template wants them so.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from calibration.chat.faults import TemplateFault

__all__ = ["TOOLS", "Abilities", "Message", "adapted", "find_abilities", "tool_dialogue"]

Message = dict[str, Any]
Run = Callable[[Sequence[Message], Sequence[Any] | None], str]
"""Renders messages and tools as they are; raises `TemplateFault`."""

_MARK = "MOE-GGUF-MARK"

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "river_level",
            "description": "The level of a river.",
            "parameters": {
                "type": "object",
                "properties": {"river": {"type": "string", "description": "Its name."}},
                "required": ["river"],
            },
        },
    }
]
"""A tool as OpenAI's interface describes it, to try templates with."""


@dataclass(frozen=True)
class Abilities:
    """Whether a template writes a system message, contents that are texts, and arguments of tools that are objects."""

    system: bool = True
    plain_content: bool = True
    object_arguments: bool = False


def find_abilities(run: Run) -> Abilities:
    """Try a template, whose faults count as inability."""
    user = {"role": "user", "content": _MARK}
    plain = _shows(run, [user], None) or not _shows(run, [_in_parts(user)], None)
    as_given = (lambda message: message) if plain else _in_parts
    system = {"role": "system", "content": _MARK}
    question = {"role": "user", "content": "How high is the water?"}
    return Abilities(
        system=_shows(run, [as_given(system), as_given(question)], None),
        plain_content=plain,
        object_arguments=_shows(run, tool_dialogue({"river": _MARK}), TOOLS),
    )


def tool_dialogue(arguments: Any) -> list[Message]:
    """A dialogue in which a tool is called and answers."""
    call = {
        "id": "call00001",
        "type": "function",
        "function": {"name": "river_level", "arguments": arguments},
    }
    return [
        {"role": "user", "content": "How high is the Rhine?"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "2.31 m", "tool_call_id": "call00001", "name": "river_level"},
        {"role": "assistant", "content": "It stands at 2.31 m."},
        {"role": "user", "content": "And the Elbe?"},
    ]


def _shows(run: Run, messages: Sequence[Message], tools: Sequence[Any] | None) -> bool:
    try:
        return _MARK in run(messages, tools)
    except TemplateFault:
        return False


def _in_parts(message: Message) -> Message:
    content = message.get("content")
    if not isinstance(content, str):
        return message
    return {**message, "content": [{"type": "text", "text": content}]}


def adapted(messages: Sequence[Mapping[str, Any]], abilities: Abilities) -> list[Message]:
    """The messages as llama.cpp would give them to a template of such abilities; the given ones stay as they are."""
    made = [dict(message) for message in messages]
    if not abilities.system and made and made[0].get("role") == "system":
        first, *made = made
        if made:
            made[0]["content"] = f"{_text(first.get('content'))}\n{_text(made[0].get('content'))}"
    for message in made:
        if "tool_calls" in message:
            message["tool_calls"] = _calls(message["tool_calls"], abilities.object_arguments)
            if message.get("content") is None:
                message["content"] = ""
    return made if abilities.plain_content else [_in_parts(message) for message in made]


def _text(content: Any) -> str:
    if isinstance(content, list):
        return "\n".join(part["text"] for part in content if isinstance(part, dict) and "text" in part)
    return content if isinstance(content, str) else ""


def _calls(calls: Any, as_objects: bool) -> Any:
    made = []
    for call in calls if isinstance(calls, list) else []:
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict) or "arguments" not in function:
            made.append(call)
            continue
        arguments = function["arguments"]
        if as_objects and isinstance(arguments, str):
            with suppress(ValueError):  # a text that is no JSON stays one
                arguments = json.loads(arguments)
        elif not as_objects and not isinstance(arguments, str):
            arguments = json.dumps(arguments, ensure_ascii=False)
        made.append({**call, "function": {**function, "arguments": arguments}})
    return made
