"""The chat templates of a folder as keys of a GGUF file; they are copied byte for byte."""

from __future__ import annotations

from collections.abc import Sequence

from gguf import GGUFValueType

from calibration.text.chat_templates import KEY, Templates, folder_templates
from calibration.text.tokenizer_files import TokenizerFiles
from quantize.containers.keys import KeyValue
from quantize.telling import Note

__all__ = ["template_keys", "with_template"]


def template_keys(files: TokenizerFiles, note: Note) -> list[KeyValue]:
    """The default template, and the named ones, in the order in which llama.cpp's converter writes them.

    Raises:
        TokenizerError: a file is damaged.
    """
    return _keys(folder_templates(files, note))


def _keys(templates: Templates) -> list[KeyValue]:
    keys = [KeyValue.text(f"{KEY}.{name}", text) for name, text in templates.named.items()]
    if templates.named:
        keys.append(KeyValue.array("tokenizer.chat_templates", list(templates.named), GGUFValueType.STRING))
    if templates.default is not None:
        keys.append(KeyValue.text(KEY, templates.default))
    return keys


def with_template(keys: Sequence[KeyValue], text: str | None) -> list[KeyValue]:
    """Keys of a model with another template, or with none; templates beside the default go.

    The template stands where one stood, else behind the special tokens, where llama.cpp's converter writes it
    (gguf-py/gguf/vocab.py: SpecialVocab.add_to_gguf).
    """
    kept = [kv for kv in keys if not kv.key.startswith(KEY)]
    if text is None:
        return kept
    places = [place for place, kv in enumerate(keys) if kv.key == KEY] or [
        place + 1 for place, kv in enumerate(keys) if _is_before(kv.key)
    ]
    n_before = sum(not kv.key.startswith(KEY) for kv in keys[: max(places, default=len(keys))])
    return [*kept[:n_before], KeyValue.text(KEY, text), *kept[n_before:]]


def _is_before(key: str) -> bool:
    """Whether the converter writes a key of the tokenizer before the template."""
    name = key.removeprefix("tokenizer.ggml.")
    return key.startswith("tokenizer.ggml.") and not name.startswith(("normalizer.", "add_space_prefix"))
