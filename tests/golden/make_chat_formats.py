"""Write tests/golden/chat_formats.json: what llama.cpp makes of dialogues by the names of its chat formats.

    python tests/golden/make_chat_formats.py

calls `llama_chat_apply_template` in the shared library of xllamacpp (the committed file: 2026.10.11549), whose formats
are C++ (src/llama-chat.cpp). Each dialogue is formatted with and without the opening of the assistant's turn. A file
that exists is not written again.
"""

from __future__ import annotations

import ctypes
import json
import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS.parent), str(TESTS / "helpers")]

from ggml import library  # noqa: E402
from places import GOLDEN  # noqa: E402

from calibration.chat.named import template_names  # noqa: E402

OWN = ("alpaca",)  # names that llama.cpp has not got

DIALOGUES = [
    [("user", "Hello")],
    [("system", " Be brief. "), ("user", "Hello\n"), ("assistant", " Hi! "), ("user", "Bye <b>")],
    [("user", "One"), ("assistant", "Two"), ("user", "Three"), ("assistant", "Vier, fünf")],
]


class Message(ctypes.Structure):
    _fields_ = (("role", ctypes.c_char_p), ("content", ctypes.c_char_p))


def formatted(name: str, dialogue: list[tuple[str, str]], opens: bool) -> str:
    apply = library().llama_chat_apply_template
    apply.restype = ctypes.c_int32
    apply.argtypes = [
        ctypes.c_char_p,
        ctypes.POINTER(Message),
        ctypes.c_size_t,
        ctypes.c_bool,
        ctypes.c_char_p,
        ctypes.c_int32,
    ]
    messages = (Message * len(dialogue))(*(Message(role.encode(), text.encode()) for role, text in dialogue))
    buffer = ctypes.create_string_buffer(4096)
    n_byte = apply(name.encode(), messages, len(dialogue), opens, buffer, len(buffer))
    assert 0 < n_byte < len(buffer), name
    return buffer.raw[:n_byte].decode()


def main() -> None:
    path = GOLDEN / "chat_formats.json"
    if path.exists():
        sys.exit(f"{path} exists")
    names = [name for name in template_names() if name not in OWN]
    formats = {
        name: [[formatted(name, dialogue, opens) for opens in (False, True)] for dialogue in DIALOGUES]
        for name in names
    }
    written = {"dialogues": DIALOGUES, "formats": formats}
    path.write_text(json.dumps(written, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
