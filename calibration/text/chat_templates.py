"""The chat templates of a model: those in its folder, or those in the keys of its GGUF file."""

from __future__ import annotations

import string
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from calibration.chat.rendering import ChatTemplate
from calibration.text.json_values import objects
from calibration.text.tokenizer_files import TokenizerFiles
from calibration.text.vocabulary import SPM, Vocabulary
from quantize.containers.text_files import optional_object, optional_text
from quantize.exceptions import TokenizerError
from quantize.telling import Note, Remark, discard

__all__ = ["KEY", "Templates", "folder_templates", "template_in_folder", "template_of_keys"]

MAX_CHARS = 2**24  # of all templates in files of their own
KEY = "tokenizer.chat_template"
_NAME_CHARS = frozenset(string.ascii_letters + string.digits)


@dataclass(frozen=True)
class Templates:
    """The templates of a folder.

    default: the one that counts where none is asked for by name.
    named: the others, in the order of the files (llama.cpp's own order is random).
    place: the file that holds the default.
    """

    default: str | None = None
    named: Mapping[str, str] = field(default_factory=dict)
    place: str = "tokenizer_config.json"


def folder_templates(files: TokenizerFiles, note: Note = discard) -> Templates:
    """The templates in a folder.

    As in the converter (gguf-py/gguf/vocab.py: SpecialVocab), templates are looked for only beside a
    tokenizer_config.json.

    Raises:
        TokenizerError: a file is damaged.
    """
    if not files.settings:
        return Templates()
    place = "tokenizer_config.json"
    if "chat_template" in files.settings:
        templates = files.settings["chat_template"]
    else:
        templates, place = _from_files(files)
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
    return Templates(named.pop("default", None), named, place)


def _from_files(files: TokenizerFiles) -> tuple[Any, str]:
    """The templates in files of their own, in the form of tokenizer_config.json, and the file of the default."""
    default = optional_text(files.folder / "chat_template.jinja")
    if default is None:
        stored = optional_object(files.folder / "chat_template.json") or {}
        return stored.get("chat_template"), "chat_template.json"
    folder = files.folder / "additional_chat_templates"
    named = []
    n_chars = len(default)
    for path in sorted(folder.glob("*.jinja")):
        text = optional_text(path) or ""
        n_chars += len(text)
        if n_chars > MAX_CHARS:  # links make many of one
            raise TokenizerError(str(folder), f"its templates have more than {MAX_CHARS} characters together")
        named.append({"name": path.stem, "template": text})
    return [{"name": "default", "template": default}, *named], "chat_template.jinja"


def template_in_folder(files: TokenizerFiles, vocabulary: Vocabulary) -> ChatTemplate | None:
    """The default template of a folder, None where it has none.

    Raises:
        TokenizerError: a file is damaged.
    """
    templates = folder_templates(files)
    if templates.default is None:
        return None
    place = str(Path(files.folder) / templates.place)
    return ChatTemplate(templates.default, place, *vocabulary.end_texts)


def template_of_keys(label: str, keys: Mapping[str, Any], name: str = "") -> ChatTemplate | None:
    """A template in the keys of a GGUF file, None where there is none.

    Args:
        label: the file, for messages.
        keys: its keys.
        name: of one beside the default.
    """
    key = f"{KEY}.{name}" if name else KEY
    text = keys.get(key)
    if not isinstance(text, str) or not text:
        return None
    tokens = keys.get("tokenizer.ggml.tokens")
    by_default = {"bos": 1, "eos": 2} if keys.get("tokenizer.ggml.model") == SPM else {}
    texts = {}
    for kind in ("bos", "eos"):
        token_id = keys.get(f"tokenizer.ggml.{kind}_token_id", by_default.get(kind))
        is_token = isinstance(tokens, list) and type(token_id) is int and 0 <= token_id < len(tokens)
        texts[kind] = str(tokens[token_id]) if is_token and isinstance(tokens, list) else ""
    return ChatTemplate(text, f"{label}: {key}" if label else key, texts["bos"], texts["eos"])
