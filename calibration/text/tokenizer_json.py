"""tokenizer.json in the tokenizers library, with all tokens that transformers would add to it.

The result is what transformers' AutoTokenizer shows llama.cpp's converter (conversion/base.py: get_vocab_base,
gguf-py/gguf/vocab.py: LlamaHfVocab), made by the tokenizers library alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from calibration.text.json_values import objects, section, token_text
from quantize.containers.untrusted import MAX_JSON_BYTES, guarded, quoted, read_bytes
from quantize.exceptions import TokenizerError

__all__ = ["KINDS", "load_tokenizer", "named_tokens"]

KINDS = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
"""Purposes for which tokenizer_config.json names tokens (`bos_token`, ...)."""

_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


def load_tokenizer(
    path: Path,
    content: Mapping[str, Any],
    settings: Mapping[str, Any],
    decoder: Mapping[int, dict[str, Any]] | None,
    added_ids: Mapping[str, int],
) -> Any:
    """The tokenizer (tokenizers.Tokenizer), with the tokens that tokenizer_config.json adds or makes special.

    As transformers 5 does it: `decoder`, where there is one, overrules tokenizer.json; a token that is named for a
    purpose is special if one of the two knows it as added; a named token that nothing knows is appended.

    Args:
        path: tokenizer.json.
        content: the JSON object in it.
        settings: tokenizer_config.json.
        decoder: its `added_tokens_decoder`, id -> entry by ascending id.
        added_ids: added_tokens.json, text -> id.

    Raises:
        TokenizerError: tokenizer.json is damaged, or of another kind than BPE.
    """
    from tokenizers import AddedToken, Tokenizer  # noqa: PLC0415 - only models with such a tokenizer need it

    _refuse_other_kinds(path, section(content, "model"))
    raw = read_bytes(path, MAX_JSON_BYTES, TokenizerError)  # the library opens no name that is not UTF-8
    loaded = guarded(
        path, lambda: Tokenizer.from_buffer(raw), "is no tokenizer that can be read", TokenizerError
    )
    loaded.no_truncation()
    loaded.no_padding()
    by_kind, others = named_tokens(settings)
    entries = _added_entries(path, content, added_ids) if decoder is None else list(decoder.values())
    loaded.add_tokens(
        [
            AddedToken(text, **_flags(entry, special=text in by_kind))
            for entry in entries
            if (text := token_text(entry))
        ]
    )
    known = {token.content for token in loaded.get_added_tokens_decoder().values()}
    loaded.add_special_tokens([AddedToken(text) for text in (*by_kind, *others) if text not in known])
    return loaded


def named_tokens(settings: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Texts that tokenizer_config.json names: those of a kind (bos, eos, ...), and further ones that are special."""
    by_kind = [text for kind in KINDS if (text := token_text(settings.get(f"{kind}_token")))]
    others = []
    for key in ("additional_special_tokens", "extra_special_tokens"):
        listed = settings.get(key)
        values = listed.values() if isinstance(listed, dict) else listed if isinstance(listed, list) else ()
        others += [text for text in map(token_text, values) if text]
    return by_kind, others


def _refuse_other_kinds(path: Path, model: Mapping[str, Any]) -> None:
    if model.get("type") != "BPE":
        raise TokenizerError(
            str(path),
            f"a tokenizer of type {quoted(model.get('type'))} is not supported",
            "supported: byte-level BPE, BPE with byte fallback, and SentencePiece as tokenizer.model",
        )
    if model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        # not byte-level, and where a merge lacks the mark, the library ends the whole process
        raise TokenizerError(str(path), "a BPE that marks the inside or end of words is not supported")


def _added_entries(
    path: Path, content: Mapping[str, Any], added_ids: Mapping[str, int]
) -> list[dict[str, Any]]:
    """The entries of added tokens, by ascending id; tokenizer.json goes before added_tokens.json."""
    entries: dict[int, dict[str, Any]] = {token_id: {"content": text} for text, token_id in added_ids.items()}
    for entry in objects(content.get("added_tokens")):
        token_id = entry.get("id")
        if type(token_id) is not int:
            raise TokenizerError(str(path), "an added token has no valid id", "fetch the file again")
        entries[token_id] = entry
    return [entries[token_id] for token_id in sorted(entries)]


def _flags(entry: Mapping[str, Any], special: bool) -> dict[str, bool]:
    flags = {flag: entry[flag] for flag in _FLAGS if isinstance(entry.get(flag), bool)}
    return {**flags, "special": True} if special else flags
