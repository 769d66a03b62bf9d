"""Which tokens begin, end and separate a text, whether they are added, and the chat templates.

Sources and precedence are llama.cpp's converter's (gguf-py/gguf/vocab.py: SpecialVocab): tokenizer.json knows ids
and the post-processor, tokenizer_config.json the names, config.json the ids that are still missing. Chat templates are
copied, never rendered.
"""

from __future__ import annotations

import string
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gguf import GGUFValueType

from gguf_export.metadata.model_keys import KeyValue
from quantize.containers.text_files import optional_object, optional_text
from quantize.telling import Note, discard

__all__ = ["TYPES", "dicts", "special_keys", "token_text"]

TYPES = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")

_ID_KEYS = {  # "seperator" is llama.cpp's spelling; cls has no key
    "bos": "bos",
    "eos": "eos",
    "eot": "eot",
    "eom": "eom",
    "unk": "unknown",
    "sep": "seperator",
    "pad": "padding",
    "mask": "mask",
}
_NAME_CHARS = frozenset(string.ascii_letters + string.digits)


@dataclass
class _Special:
    """What the files say, in the order in which they say it: the order of the keys."""

    names: dict[str, str]  # kind -> text of the token
    types: list[str] = field(default_factory=lambda: list(TYPES))
    add: dict[str, bool] = field(default_factory=dict)
    ids: dict[str, int] = field(default_factory=dict)


def special_keys(
    path: Path,
    tokenizer: Mapping[str, Any],
    settings: Mapping[str, Any],
    n_vocab: int,
    note: Note = discard,
) -> list[KeyValue]:
    """Ids of special tokens, whether to add them, chat templates, flags of the normalizer, in llama.cpp's order.

    One difference: a token that tokenizer_config.json writes as an object (`{"content": "</s>"}`) is to us the same as
    its text, where the converter takes the two for different tokens and may write an end of turn that nobody defined.

    Args:
        path: the model's folder.
        tokenizer: tokenizer.json, empty where there is none.
        settings: tokenizer_config.json, empty where there is none.
        n_vocab: rows of the embedding; ids beyond are left out.
        note: told what was left out.

    Raises:
        TokenizerError: a file is damaged.
    """
    special = _Special({kind: text for kind in TYPES if (text := token_text(settings.get(f"{kind}_token")))})
    for kind, stand_in in (("bos", "cls"), ("eos", "sep")):
        if tokenizer and kind not in special.names and stand_in in special.names:
            special.names[kind] = special.names[stand_in]
    _post_process(tokenizer.get("post_processor"), special, known=bool(settings))
    if settings:
        _read_settings(tokenizer, settings, special, n_vocab, note)
    _read_config(path, special, n_vocab, note)

    keys = [
        KeyValue.u32(f"tokenizer.ggml.{_ID_KEYS[kind]}_token_id", xid)
        for kind, xid in special.ids.items()
        if kind in _ID_KEYS
    ]
    keys += [
        KeyValue.flag(f"tokenizer.ggml.add_{kind}_token", value)
        for kind, value in special.add.items()
        if kind in ("bos", "eos", "sep")
    ]
    if settings:
        keys += _template_keys(path, settings, note)
    flags: dict[str, bool] = {}
    _normalizer_flags(tokenizer.get("normalizer"), flags)
    keys += [
        KeyValue.flag(f"tokenizer.ggml.normalizer.{flag}", flags[flag])
        for flag in ("lowercase", "strip_accents")
        if flag in flags
    ]
    return keys


def dicts(value: Any) -> list[dict[str, Any]]:
    """The objects of a JSON list; nothing of what is no list or no object."""
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def token_text(entry: Any) -> str | None:
    """The text of a token, which tokenizer_config.json writes as text or as an object with `content`."""
    content = entry.get("content") if isinstance(entry, dict) else entry
    return content if isinstance(content, str) and content else None


def _post_process(processor: Any, special: _Special, known: bool) -> None:
    """What the post-processor adds around a text; `known` if there is a tokenizer_config.json.

    Only simple templates are understood, as in llama.cpp: special tokens at the ends of `single` and between the two
    texts of `pair`.
    """
    if not isinstance(processor, dict):
        return
    for step in dicts(processor.get("processors", [processor])):
        kind = step.get("type")
        if kind == "ByteLevel":
            special.add.setdefault("bos", False)
            special.add.setdefault("eos", False)
        elif kind == "RobertaProcessing":
            special.add.update(bos=True, eos=True, sep=True)
            if known:
                for name in ("cls", "sep"):
                    pair = step.get(name)
                    if name not in special.names and isinstance(pair, list) and pair and token_text(pair[0]):
                        special.names[name] = pair[0]
        elif kind == "TemplateProcessing":
            _template_processing(step, special, known)


def _special_id(piece: Mapping[str, Any], kind: str = "SpecialToken") -> str | None:
    inner = piece.get(kind)
    return token_text(inner.get("id")) if isinstance(inner, dict) else None


def _template_processing(step: Mapping[str, Any], special: _Special, known: bool) -> None:
    names = special.names
    single, pair = dicts(step.get("single")), dicts(step.get("pair"))
    first = last = None
    if len(single) > 1:
        first, last = _special_id(single[0]), _special_id(single[-1])
    if first:
        if not known:
            names["bos"] = first
        elif first not in (names.get("bos"), names.get("cls")):
            names.setdefault("bos", first)
            names.setdefault("cls", first)
        special.add["bos"] = first in (names.get("bos"), names.get("cls"))
    if last:
        if known and last != names.get("eos"):
            # the template's end is the true one; the configured one, if any, ends a turn or a message
            old = next((kind for kind in ("eot", "eom") if kind not in special.types), None)
            if old:
                special.types.append(old)
                if "eos" in names:
                    names[old] = names["eos"]
        names["eos"] = last
        special.add["eos"] = True
    if pair:
        _pair_separator(pair, first, last, special, known)


def _pair_separator(
    pair: list[dict[str, Any]], first: str | None, last: str | None, special: _Special, known: bool
) -> None:
    """Whether the template puts a separator between two texts: A [sep] [eos] B."""
    names = special.names
    if first and _special_id(pair[0]) == first:
        pair = pair[1:]
    if pair and last and _special_id(pair[-1]) == last:
        pair = pair[:-1]
    if len(pair) < 3 or _special_id(pair[0], "Sequence") != "A" or _special_id(pair[-1], "Sequence") != "B":
        return
    ends = (names.get("sep"), names.get("eos"))
    between = [_special_id(piece) for piece in pair[1:-1]]
    add_sep = between[0] is not None and between[0] in ends and not last
    if len(between) == 2 and between[1] is not None and between[1] in ends:
        add_sep = True
    special.add["sep"] = add_sep
    if add_sep and "sep" not in names and known and "eos" in names:
        names["sep"] = names["eos"]


def _read_settings(
    tokenizer: Mapping[str, Any], settings: Mapping[str, Any], special: _Special, n_vocab: int, note: Note
) -> None:
    """Fill in `add_*_token` of tokenizer_config.json, and the ids of the named tokens by tokenizer.json."""
    ids: dict[str, Any] = {}
    for token in dicts(tokenizer.get("added_tokens")):
        if isinstance(token.get("content"), str):
            ids.setdefault(token["content"], token.get("id"))
    for kind in special.types:
        wanted = settings.get(f"add_{kind}_token")
        if isinstance(wanted, bool) and special.add.setdefault(kind, wanted) != wanted:
            note(
                f"tokenizer_config.json: add_{kind}_token is {wanted}, the post-processor of tokenizer.json says "
                f"{special.add[kind]}; the latter is written, as llama.cpp's converter does"
            )
        if kind in special.names:
            _set_id(special, kind, ids.get(special.names[kind]), n_vocab, note)


def _read_config(path: Path, special: _Special, n_vocab: int, note: Note) -> None:
    """Fill in ids by config.json as it stands in the folder: the defaults of transformers do not count here."""
    config = optional_object(path / "config.json") or {}
    inner = config.get("text_config")
    for kind in special.types:
        xid = config.get(f"{kind}_token_id")
        if xid is None and isinstance(inner, dict):
            xid = inner.get(f"{kind}_token_id")
        _set_id(special, kind, xid, n_vocab, note)


def _set_id(special: _Special, kind: str, xid: Any, n_vocab: int, note: Note) -> None:
    if kind in special.ids or not isinstance(xid, int) or isinstance(xid, bool):
        return  # known already, unknown, or a list of several
    if 0 <= xid < n_vocab:
        special.ids[kind] = xid
    else:
        note(f"{kind}_token_id {xid} is not written: the vocabulary has {n_vocab} tokens")


def _template_keys(path: Path, settings: Mapping[str, Any], note: Note) -> list[KeyValue]:
    """The chat template, and the named ones in the order in which they are given (llama.cpp's order is random)."""
    template = settings["chat_template"] if "chat_template" in settings else _template_file(path)
    if isinstance(template, str):
        template = [{"name": "default", "template": template}]
    elif template is not None and not isinstance(template, list):
        note("tokenizer_config.json: chat_template is neither text nor a list; it is not written")
    named: dict[str, str] = {}
    for choice in dicts(template):
        name, text = choice.get("name"), choice.get("template")
        if isinstance(name, str) and name and isinstance(text, str) and text:
            named["".join(char if char in _NAME_CHARS else "_" for char in name)] = text
        else:
            note("a chat template without a name or a text is not written")
    default = named.pop("default", None)
    keys = [KeyValue.text(f"tokenizer.chat_template.{name}", text) for name, text in named.items()]
    if named:
        keys.append(KeyValue.array("tokenizer.chat_templates", list(named), GGUFValueType.STRING))
    if default is not None:
        keys.append(KeyValue.text("tokenizer.chat_template", default))
    return keys


def _template_file(path: Path) -> Any:
    default = optional_text(path / "chat_template.jinja")
    if default is None:
        return (optional_object(path / "chat_template.json") or {}).get("chat_template")
    more = sorted((path / "additional_chat_templates").glob("*.jinja"))
    texts = [{"name": file.stem, "template": optional_text(file)} for file in more]
    return [{"name": "default", "template": default}, *texts]


def _normalizer_flags(normalizer: Any, flags: dict[str, bool]) -> None:
    """Lower-casing and accent-stripping of a normalizer of tokenizer.json, of the parts of a sequence in turn."""
    if not isinstance(normalizer, dict):
        return
    kind = normalizer.get("type")
    if kind == "Lowercase":
        flags["lowercase"] = True
    elif kind == "StripAccents":
        flags["strip_accents"] = True
    elif kind == "BertNormalizer":
        flags.update(
            {
                flag: normalizer[flag]
                for flag in ("lowercase", "strip_accents")
                if isinstance(normalizer.get(flag), bool)
            }
        )
    elif kind == "Sequence":
        for part in dicts(normalizer.get("normalizers")):
            _normalizer_flags(part, flags)
