"""Chat templates by the names that llama.cpp has for them (`--chat-template`; src/llama-chat.cpp).

llama.cpp formats these in C++. The templates in `templates/` were written for this project, so that each makes of a
dialogue what llama.cpp makes of it (`tests/golden/make_chat_formats.py`).
"""

from __future__ import annotations

from pathlib import Path

__all__ = ["named_template", "template_names"]

_FOLDER = Path(__file__).with_name("templates")


def template_names() -> list[str]:
    """All names, in alphabetical order."""
    return sorted(path.stem for path in _FOLDER.glob("*.jinja"))


def named_template(name: str) -> str | None:
    """The template of a name, None where there is none of it."""
    return (_FOLDER / f"{name}.jinja").read_text("utf-8") if name in template_names() else None
