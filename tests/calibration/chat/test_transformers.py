"""Templates with the features of real ones make the texts that transformers makes."""

from __future__ import annotations

import json

import pytest
from places import GOLDEN

from calibration.chat.dialogues import PLAIN_DIALOGUE, Dialogue
from calibration.chat.rendering import ChatTemplate, Fault, render

TEXTS = json.loads((GOLDEN / "chat_texts.json").read_text("utf-8"))


def template(name: str) -> ChatTemplate:
    text = (GOLDEN / "chat_templates" / f"{name}.jinja").read_text("utf-8")
    return ChatTemplate(text, name, "<s>", "</s>")


@pytest.mark.parametrize("name", list(TEXTS["texts"]))
def test_texts_are_those_of_transformers(name: str) -> None:
    dialogues = [
        Dialogue(dialogue["messages"], dialogue.get("tools"), generation=opens)
        for dialogue in TEXTS["dialogues"]
        for opens in (False, True)
    ]
    made = render(template(name), dialogues, as_given=True)
    assert list(made.texts) == TEXTS["texts"][name]


def test_a_system_message_is_refused_or_goes_into_the_next_one() -> None:
    made = render(template("alternating"), [PLAIN_DIALOGUE], as_given=True)
    assert isinstance(made.texts[0], Fault) and made.texts[0].kind == "refused"
    assert not made.abilities.system
    made = render(template("alternating"), [PLAIN_DIALOGUE])
    assert str(made.texts[0]).startswith(
        "<s>[INST] You answer in one sentence.\nWhy is the sky blue? [/INST]"
    )
