"""Dialogues: what a person gives as JSON lines, and those by which a template is tried."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from calibration.chat.abilities import TOOLS, tool_dialogue
from quantize.containers.untrusted import parse_json, quoted, read_bytes
from quantize.exceptions import TextError

__all__ = ["PLAIN_DIALOGUE", "TOOL_DIALOGUE", "TOOL_LIST_DIALOGUE", "Dialogue", "read_dialogues"]

MAX_BYTES = 2**28  # of a file of dialogues


@dataclass(frozen=True)
class Dialogue:
    """Messages, as OpenAI's interface has them, and the tools that may be called in them.

    `generation`: the assistant's turn is opened behind the last message.
    """

    messages: Sequence[Mapping[str, Any]]
    tools: Sequence[Any] | None = None
    generation: bool = False

    def without_system(self) -> Dialogue:
        """The same without its system messages."""
        kept = [message for message in self.messages if message.get("role") != "system"]
        return Dialogue(kept, self.tools, self.generation)


PLAIN_DIALOGUE = Dialogue(
    [
        {"role": "system", "content": "You answer in one sentence."},
        {"role": "user", "content": "Why is the sky blue?"},
        {"role": "assistant", "content": "Air scatters short waves of light more than long ones."},
        {"role": "user", "content": "And at sunset?"},
    ],
    generation=True,
)
TOOL_LIST_DIALOGUE = Dialogue(PLAIN_DIALOGUE.messages, TOOLS, generation=True)
TOOL_DIALOGUE = Dialogue(tool_dialogue('{"river": "Rhine"}'), TOOLS, generation=True)


def read_dialogues(path: Path) -> tuple[list[Dialogue], list[int]]:
    """The dialogues of a file of JSON lines, and the number of each one's line.

    A line is `{"messages": [...]}` or `{"messages": [...], "tools": [...]}`.
    A message is an object with a `role`. Blank lines are passed over.

    Raises:
        TextError: the file cannot be read or has no dialogue, or a line is none; the message names the line.
    """
    raw = read_bytes(path, MAX_BYTES, TextError)
    dialogues, lines = [], []
    for number, line in enumerate(raw.split(b"\n"), 1):
        if line.strip():
            dialogues.append(_dialogue(line, f"{path}: line {number}"))
            lines.append(number)
    if not dialogues:
        raise TextError(str(path), "the text is empty")
    return dialogues, lines


def _dialogue(line: bytes, place: str) -> Dialogue:
    found = parse_json(line, place, TextError)
    messages = found.get("messages") if isinstance(found, dict) else None
    if not isinstance(messages, list) or not messages:
        remedy = 'write {"messages": [{"role": "user", "content": "..."}, ...]} in each line'
        raise TextError(place, "is no dialogue: it has no list of messages", remedy)
    for message in messages:
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise TextError(place, f"a message has no role: {quoted(message)}")
        if "content" not in message and "tool_calls" not in message:
            raise TextError(place, f"the message of role {quoted(message['role'])} has no content")
        content = message.get("content")
        if not isinstance(content, (str, list, type(None))):
            what = f"the content of the message of role {quoted(message['role'])}"
            raise TextError(place, f"{what} is neither text nor a list of parts")
    tools = found.get("tools")
    if tools is not None and not isinstance(tools, list):
        raise TextError(place, "tools is not a list")
    return Dialogue(messages, tools or None)
