"""Texts of dialogues: a file of JSON lines, written by the chat template of a model."""

from __future__ import annotations

import calendar
from pathlib import Path

from calibration.chat.dialogues import Dialogue, read_dialogues
from calibration.chat.rendering import ChatTemplate, Fault, render
from calibration.text.built_in import is_built_in
from calibration.text.chat_templates import template_in_folder, template_of_keys
from calibration.text.chosen_template import AS_IS, choose_template
from calibration.text.chunks import Text, read_text
from calibration.text.tokenizer import vocabulary_of
from calibration.text.tokenizer_files import TokenizerFiles
from quantize.containers.untrusted import label
from quantize.exceptions import TextError
from quantize.sources.model_source import ModelFile

__all__ = ["SUFFIX", "read_text_of"]

SUFFIX = ".jsonl"
NOW = float(calendar.timegm((2024, 7, 26, 12, 0, 0)))
"""The time that templates are told, so that a text is the same every day: the date that Llama 3.1 takes by itself."""


def read_text_of(model: ModelFile, path: Path, chat_template: str | None = None) -> Text:
    """A text for a model: the dialogues of `FILE.jsonl`, or any other file as it is.

    Each line of dialogues is `{"messages": [...]}`, and may have `"tools": [...]`; the model's template writes them as
    llama-server would, without opening another turn. The time that it is told is always `NOW`. Dialogues of a built-in
    text are plain text for a model without a template.

    Args:
        model: the model whose template and tokens count.
        path: the file.
        chat_template: another template, as `choose_template` takes it.

    Raises:
        TextError: the file cannot be read; a line is no dialogue or the template refuses it (the message names the
            line); or the model has no template.
        TokenizerError: there is no such template, or the model has no tokenizer that can be used here.
    """
    if path.suffix.lower() != SUFFIX:
        return read_text(path)
    dialogues, lines = read_dialogues(path)
    template, adds_bos = _template(model, chat_template)
    if template is None:
        if is_built_in(path):
            return Text(label(path), "\n\n\n".join(map(_plain, dialogues)))
        raise TextError(
            str(path),
            f"is dialogues, and {model.label} has no chat template to write them with",
            "put a chat_template.jinja beside its tokenizer_config.json, or give plain text",
        )
    made = render(template, dialogues, now=NOW)
    remedy = "give another file with {setting}"
    if made.fault is not None:
        message = f"the chat template fails: {made.fault.message}"
        raise TextError(template.place, message, remedy, setting="chat_template")
    texts = []
    for line, text in zip(lines, made.texts, strict=True):
        if isinstance(text, Fault):
            raise TextError(
                f"{path}: line {line}",
                f"the chat template of {template.place} cannot write this dialogue: {text.message}",
                "correct the dialogue, or leave it out",
            )
        # llama.cpp adds BOS when it cuts the text, and takes away the template's (common/chat.cpp: add_bos)
        texts.append(text.removeprefix(template.bos) if adds_bos else text)
    return Text(label(path), dialogues=tuple(texts))


def _plain(dialogue: Dialogue) -> str:
    """A dialogue as a text of turns: `User: ...`."""
    return "\n\n".join(f"{turn['role'].capitalize()}: {turn['content']}" for turn in dialogue.messages)


def _template(model: ModelFile, choice: str | None) -> tuple[ChatTemplate | None, bool]:
    """The template that counts, if there is one, and whether the model wants BOS before a text."""
    vocabulary = vocabulary_of(model)
    if model.kind == "checkpoint":
        own = template_in_folder(TokenizerFiles(model.path), vocabulary)
    else:
        own = template_of_keys(model.label, model.keys)
    adds_bos = vocabulary.bos_id is not None
    if choice is not None and choice != AS_IS:
        chosen = choose_template(choice, model.path)
        texts = vocabulary.end_texts
        own = None if chosen.text is None else ChatTemplate(chosen.text, chosen.place, *texts)
    return own, adds_bos
