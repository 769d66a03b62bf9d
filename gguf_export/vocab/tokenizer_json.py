"""tokenizer.json: a byte-level BPE, or a SentencePiece vocabulary in its form (BPE with byte fallback).

The list is what transformers' AutoTokenizer would show llama.cpp's converter (conversion/base.py: get_vocab_base,
gguf-py/gguf/vocab.py: LlamaHfVocab), by the tokenizers library alone.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gguf import TokenType

from calibration.text.tokenizer import refuse_marked_subwords
from gguf_export.vocab import pretokenizers
from gguf_export.vocab.special_tokens import TYPES, dicts, token_text
from gguf_export.vocab.tokens import Slots, Token, added_token, added_tokens_decoder
from quantize.containers.text_files import optional_object, optional_text
from quantize.containers.untrusted import guarded, quoted
from quantize.exceptions import TokenizerError
from quantize.telling import Note

__all__ = ["is_sentencepiece_like", "merges_of", "put_byte_level", "put_sentencepiece_like"]


def _model(tokenizer: Mapping[str, Any]) -> Mapping[str, Any]:
    model = tokenizer.get("model")
    return model if isinstance(model, dict) else {}


def is_sentencepiece_like(tokenizer: Mapping[str, Any]) -> bool:
    """Whether a tokenizer.json holds what SentencePiece would: a BPE that falls back to `<0x..>` tokens."""
    decoder = tokenizer.get("decoder")
    return (
        _model(tokenizer).get("type") == "BPE"
        and bool(_model(tokenizer).get("byte_fallback"))
        and isinstance(decoder, dict)
        and decoder.get("type") == "Sequence"
    )


def _load(source: Path, tokenizer: Mapping[str, Any], settings: Mapping[str, Any]) -> Any:
    """The tokenizer (tokenizers.Tokenizer), with the tokens that tokenizer_config.json adds or makes special.

    As transformers 5 does it: `added_tokens_decoder`, where there is one, overrules tokenizer.json; a token that is
    named for a purpose is special if one of the two knows it as added; what is named but nowhere found is appended.
    """
    from tokenizers import AddedToken, Tokenizer  # noqa: PLC0415

    kind = _model(tokenizer).get("type")
    if kind != "BPE":
        raise TokenizerError(
            f"{source}: a tokenizer of type {quoted(kind)} is not supported; supported: byte-level BPE, BPE with byte "
            "fallback, and SentencePiece as tokenizer.model"
        )
    refuse_marked_subwords(source, tokenizer)
    loaded = guarded(
        source, lambda: Tokenizer.from_file(str(source)), "is no tokenizer that can be read", TokenizerError
    )
    loaded.no_truncation()
    loaded.no_padding()
    by_kind, more = _named(settings)
    entries = _added_entries(source, tokenizer, settings)
    loaded.add_tokens(
        [
            AddedToken(text, **_flags(entry, special=text in by_kind))
            for entry in entries
            if (text := token_text(entry))
        ]
    )
    there = {token.content for token in loaded.get_added_tokens_decoder().values()}
    loaded.add_special_tokens([AddedToken(text) for text in (*by_kind, *more) if text not in there])
    return loaded


def _added_entries(
    source: Path, tokenizer: Mapping[str, Any], settings: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """What is known of the added tokens, by ascending id."""
    if "added_tokens_decoder" in settings:
        return list(added_tokens_decoder(settings).values())
    path = source.with_name("added_tokens.json")
    found = {xid: {"content": text} for text, xid in (optional_object(path) or {}).items()}
    found |= {entry.get("id"): entry for entry in dicts(tokenizer.get("added_tokens"))}
    if any(isinstance(xid, bool) or not isinstance(xid, int) for xid in found):
        raise TokenizerError(f"{path}: an added token has no valid id; fetch the file again")
    return [found[xid] for xid in sorted(found)]


def _flags(entry: Mapping[str, Any], special: bool) -> dict[str, bool]:
    flags = {
        flag: entry[flag]
        for flag in ("single_word", "lstrip", "rstrip", "normalized", "special")
        if isinstance(entry.get(flag), bool)
    }
    return {**flags, "special": True} if special else flags


def _named(settings: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Tokens that tokenizer_config.json names: those of a kind (bos, eos, ...), and more that are special."""
    by_kind = [text for kind in TYPES if (text := token_text(settings.get(f"{kind}_token")))]
    more = []
    for key in ("additional_special_tokens", "extra_special_tokens"):
        listed = settings.get(key)
        values = listed.values() if isinstance(listed, dict) else listed if isinstance(listed, list) else ()
        more += [text for text in map(token_text, values) if text]
    return by_kind, more


def put_sentencepiece_like(
    slots: Slots, source: Path, tokenizer: Mapping[str, Any], settings: Mapping[str, Any]
) -> None:
    """A SentencePiece vocabulary in the form of tokenizer.json, which keeps no scores."""
    loaded = _load(source, tokenizer, settings)
    by_kind, more = _named(settings)
    special = {"<unk>", "<s>", "</s>", *by_kind, *more}
    n_base = loaded.get_vocab_size(with_added_tokens=False)
    for text, xid in _by_id(loaded):
        if re.fullmatch("<0x[0-9A-Fa-f]{2}>", text):
            kind = TokenType.BYTE
        elif text in special:
            kind = TokenType.CONTROL
        else:
            kind = TokenType.NORMAL if xid < n_base else TokenType.USER_DEFINED
        slots.put(xid, Token(text, kind), source)


def put_byte_level(
    slots: Slots,
    source: Path,
    tokenizer: Mapping[str, Any],
    settings: Mapping[str, Any],
    pre: str | None,
    note: Note,
) -> str:
    """A byte-level BPE; returns the name of its pre-tokenizer."""
    loaded = _load(source, tokenizer, settings)
    found = _pre_tokenizer(source, loaded, settings, pre, note)
    added = loaded.get_added_tokens_decoder()
    for text, xid in _by_id(loaded):
        if xid not in added:
            token = Token(text, TokenType.NORMAL)
        elif added[xid].normalized:
            token = added_token(text, added[xid].special)
        else:  # llama.cpp looks for it in normalized text
            ids = loaded.encode(text, add_special_tokens=False).ids
            token = added_token(loaded.decode(ids, skip_special_tokens=False), added[xid].special)
        slots.put(xid, token, source)
    return found


def _by_id(loaded: Any) -> list[tuple[str, int]]:
    """All tokens and their ids, the highest id first: it decides whether they fit."""
    vocab: dict[str, int] = loaded.get_vocab(with_added_tokens=True)
    return sorted(vocab.items(), key=lambda item: -item[1])


def _pre_tokenizer(
    source: Path, loaded: Any, settings: Mapping[str, Any], pre: str | None, note: Note
) -> str:
    """The name by the hash of what the check text is encoded to.

    First with the BOS and EOS that the tokenizer adds, as the converter does it; then in the other three ways, because
    transformers adds them by tokenizer_config.json, too, and models are saved with them switched.
    """
    if pre is not None and pre not in pretokenizers.KNOWN:
        known = ", ".join(sorted(pretokenizers.KNOWN))
        raise TokenizerError(f"--pre {pre}: llama.cpp knows no such pre-tokenizer; it knows {known}")
    text = pretokenizers.CHECK_TEXT
    whole, plain = guarded(
        source,
        lambda: (loaded.encode(text).ids, loaded.encode(text, add_special_tokens=False).ids),
        "cannot encode llama.cpp's check text",
        TokenizerError,
    )
    bos, eos = (
        [] if name is None or (xid := loaded.token_to_id(name)) is None else [xid]
        for name in (token_text(settings.get("bos_token")), token_text(settings.get("eos_token")))
    )
    found = pretokenizers.recognise([whole, bos + plain, bos + plain + eos, plain + eos, plain])
    if found is None and "ByteLevel" not in f"{loaded.pre_tokenizer} {loaded.normalizer}":
        raise TokenizerError(f"{source}: is no byte-level BPE, and no other that llama.cpp knows")
    if pre is None and found is None:
        raise TokenizerError(
            f"{source}: the pre-tokenizer is unknown (hash {pretokenizers.hash_ids(whole)}); if you know which of "
            "llama.cpp's splits text like it, pass its name with --pre NAME, such as gpt-2, llama-bpe or qwen2"
        )
    if pre is not None and found not in (None, pre):
        note(f"{source}: the pre-tokenizer was recognised as {found}; {pre} is written, as --pre asks")
    return pre or found or ""


def merges_of(source: Path, tokenizer: Mapping[str, Any]) -> list[str]:
    """The merges as "left right", from tokenizer.json or else merges.txt; a space within is written as U+0120."""
    merges = _model(tokenizer).get("merges")
    if not merges:
        lines = (optional_text(source.with_name("merges.txt")) or "").splitlines()
        pairs = [line.split() for line in lines if not line.startswith("#version")]
        merges = [pair for pair in pairs if len(pair) == 2]
    if not isinstance(merges, list) or not merges:
        raise TokenizerError(
            f"{source}: has no merges, and there is no merges.txt; fetch the tokenizer again"
        )
    joined = []
    for merge in merges:
        pair = merge if isinstance(merge, list) else merge.split(" ") if isinstance(merge, str) else []
        if len(pair) != 2 or not all(isinstance(part, str) for part in pair):
            raise TokenizerError(f"{source}: merge {quoted(merge)} is no pair; fetch the tokenizer again")
        joined.append(" ".join(part.replace(" ", "Ġ") for part in pair))
    return joined
