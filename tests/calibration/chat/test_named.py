"""Templates by name make what llama.cpp's formats in C++ make."""

from __future__ import annotations

import json

import pytest
from places import GOLDEN

from calibration.chat.dialogues import PLAIN_DIALOGUE, Dialogue
from calibration.chat.named import named_template, template_names
from calibration.chat.rendering import ChatTemplate, render

FORMATS = json.loads((GOLDEN / "chat_formats.json").read_text("utf-8"))
EOS = {"zephyr": "<|endoftext|>"}  # llama.cpp knows one model's end of text, templates are told their own


def template(name: str, bos: str = "") -> ChatTemplate:
    text = named_template(name)
    assert text is not None
    return ChatTemplate(text, name, bos, EOS.get(name, "</s>"))


@pytest.mark.parametrize("name", list(FORMATS["formats"]))
def test_a_named_template_is_llama_cpps_format(name: str) -> None:
    dialogues = [
        Dialogue([{"role": role, "content": text} for role, text in dialogue], generation=opens)
        for dialogue in FORMATS["dialogues"]
        for opens in (False, True)
    ]
    bos = "<s>" if name == "llama2-sys-bos" else ""
    made = render(template(name, bos), dialogues, as_given=True)
    wanted = [text for texts in FORMATS["formats"][name] for text in texts]
    assert [str(text).removeprefix(bos) for text in made.texts] == wanted


def test_every_name_works_and_knows_what_llama_cpp_knows() -> None:
    assert "alpaca" in template_names() and len(template_names()) > 20
    for name in template_names():
        made = render(template(name), [PLAIN_DIALOGUE])
        assert made.fault is None and not made.unknown, name
        assert made.abilities.system and "And at sunset?" in str(made.texts[0]), name


def test_names_that_are_none() -> None:
    assert named_template("chat") is None
    assert named_template("../templates/chatml") is None
