"""The chat templates of a folder as keys of a GGUF file; they are copied, never rendered."""

from __future__ import annotations

import string
from typing import Any

from gguf import GGUFValueType

from calibration.text.json_values import objects
from calibration.text.tokenizer_files import TokenizerFiles
from quantize.containers.keys import KeyValue
from quantize.containers.text_files import optional_object, optional_text
from quantize.exceptions import TokenizerError
from quantize.telling import Note, Remark

__all__ = ["template_keys"]

MAX_CHARS = 2**24  # of all templates in files of their own
_NAME_CHARS = frozenset(string.ascii_letters + string.digits)


def template_keys(files: TokenizerFiles, note: Note) -> list[KeyValue]:
    """The default template, and the named ones in the order of the files (llama.cpp's own order is random).

    As in the converter (gguf-py/gguf/vocab.py: SpecialVocab), templates are looked for only beside a
    tokenizer_config.json.

    Raises:
        TokenizerError: a file is damaged.
    """
    if not files.settings:
        return []
    templates = files.settings["chat_template"] if "chat_template" in files.settings else _from_files(files)
    if isinstance(templates, str):
        templates = [{"name": "default", "template": templates}]
    elif templates is not None and not isinstance(templates, list):
        note(Remark("tokenizer_config.json", "chat_template is neither text nor a list", "it is not written"))
    named: dict[str, str] = {}
    for choice in objects(templates):
        name, text = choice.get("name"), choice.get("template")
        if isinstance(name, str) and name and isinstance(text, str) and text:
            named["".join(char if char in _NAME_CHARS else "_" for char in name)] = text
        else:
            note(
                Remark(
                    "tokenizer_config.json", "a chat template without a name or a text", "it is not written"
                )
            )
    default = named.pop("default", None)
    keys = [KeyValue.text(f"tokenizer.chat_template.{name}", text) for name, text in named.items()]
    if named:
        keys.append(KeyValue.array("tokenizer.chat_templates", list(named), GGUFValueType.STRING))
    if default is not None:
        keys.append(KeyValue.text("tokenizer.chat_template", default))
    return keys


def _from_files(files: TokenizerFiles) -> Any:
    """The templates in files of their own, in the form of tokenizer_config.json."""
    default = optional_text(files.folder / "chat_template.jinja")
    if default is None:
        return (optional_object(files.folder / "chat_template.json") or {}).get("chat_template")
    folder = files.folder / "additional_chat_templates"
    named = []
    n_chars = len(default)
    for path in sorted(folder.glob("*.jinja")):
        text = optional_text(path) or ""
        n_chars += len(text)
        if n_chars > MAX_CHARS:  # links make many of one
            raise TokenizerError(str(folder), f"its templates have more than {MAX_CHARS} characters together")
        named.append({"name": path.stem, "template": text})
    return [{"name": "default", "template": default}, *named]
