"""Write tests/golden/chat_texts.json: dialogues by the templates in tests/golden/chat_templates.

    python tests/golden/make_chat_texts.py

calls the Jinja of transformers' `apply_chat_template` (the committed file: transformers 5.23). The templates were
written for this project and use what those of well-known models use. A file that exists is not written again.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS.parent), str(TESTS / "helpers")]

from places import GOLDEN  # noqa: E402

from calibration.chat.abilities import TOOLS  # noqa: E402

THOUGHT = "<think>\nIt is 4.\n</think>\n\nFour."
DIALOGUES: list[dict[str, Any]] = [
    {"messages": [{"role": "user", "content": "Hello"}]},
    {
        "messages": [
            {"role": "user", "content": "2 + 2? "},
            {"role": "assistant", "content": THOUGHT},
            {"role": "user", "content": "Größer als 3?"},
        ],
        "tools": TOOLS,
    },
    {
        "messages": [
            {"role": "user", "content": "2 + 2?"},
            {"role": "assistant", "content": THOUGHT},
        ]
    },
]


def main() -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    path = GOLDEN / "chat_texts.json"
    if path.exists():
        sys.exit(f"{path} exists")
    texts: dict[str, list[str]] = {}
    for template in sorted((GOLDEN / "chat_templates").glob("*.jinja")):
        made = texts[template.stem] = []
        for dialogue in DIALOGUES:
            for opens in (False, True):
                rendered = render_jinja_template(
                    [dialogue["messages"]],
                    tools=dialogue.get("tools"),
                    chat_template=template.read_text("utf-8"),
                    add_generation_prompt=opens,
                    bos_token="<s>",
                    eos_token="</s>",
                )
                made.append(str(rendered[0][0]))
    written = {"dialogues": DIALOGUES, "texts": texts}
    path.write_text(json.dumps(written, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
