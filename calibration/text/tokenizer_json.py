"""tokenizer.json in the tokenizers library, with all tokens that transformers would add to it.

The result is what transformers' AutoTokenizer shows llama.cpp's converter (conversion/base.py: get_vocab_base,
gguf-py/gguf/vocab.py: LlamaHfVocab), made by the tokenizers library alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from calibration.text import library_parts
from calibration.text.json_values import objects, section, token_text
from quantize.containers.untrusted import guarded, quoted
from quantize.exceptions import TokenizerError

__all__ = ["KINDS", "LoadedTokenizer", "load_tokenizer", "named_tokens"]

KINDS = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
"""Purposes for which tokenizer_config.json names tokens (`bos_token`, ...)."""

_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
_MODEL = ("unk_token", "fuse_unk", "byte_fallback", "ignore_merges", "vocab", "merges")
"""What of a BPE counts; `dropout`, which makes each run another one, does not."""

MAX_ADDED_BYTES = (
    2**22
)  # of the texts of all added tokens, for which the library takes a hundred times as much


@dataclass(frozen=True)
class LoadedTokenizer:
    """A tokenizer.json in the tokenizers library."""

    library: Any
    """A tokenizers.Tokenizer: all tokens, and what cuts and merges text, but no post-processor."""
    unknown: TokenizerError | None = None
    """Why it does not cut text as the file says, None where it does."""


def load_tokenizer(
    path: Path,
    content: Mapping[str, Any],
    settings: Mapping[str, Any],
    decoder: Mapping[int, dict[str, Any]] | None,
    added_ids: Mapping[str, int],
) -> LoadedTokenizer:
    """The tokenizer, with the tokens that tokenizer_config.json adds or makes special.

    As transformers 5 does it: `decoder`, where there is one, overrules tokenizer.json; a token that is named for a
    purpose is special if one of the two knows it as added; a named token that nothing knows is appended.

    Args:
        path: tokenizer.json.
        content: the JSON object in it.
        settings: tokenizer_config.json.
        decoder: its `added_tokens_decoder`, id -> entry by ascending id.
        added_ids: added_tokens.json, text -> id.

    Raises:
        TokenizerError: tokenizer.json is damaged, of another kind than BPE, or adds more than a model can have.
    """
    from tokenizers import AddedToken, Tokenizer  # noqa: PLC0415 - only models with such a tokenizer need it

    _refuse_other_kinds(path, section(content, "model"))
    by_kind, others = named_tokens(settings)
    entries = _added_entries(path, content, added_ids) if decoder is None else list(decoder.values())
    _refuse_excess(path, [*objects(content.get("added_tokens")), *entries, *by_kind, *others])
    steps, unknown = _copied_steps(path, content, _normalized_texts(content, entries, (*by_kind, *others)))
    # a string of our own: what else the file says (post-processor, truncation, padding) the library never sees
    own = json.dumps(
        _LIKE_NONE | {"added_tokens": _copied_tokens(content), "model": _copied_model(content)} | steps
    )
    loaded = guarded(
        path, lambda: Tokenizer.from_str(own), "is no tokenizer that can be read", TokenizerError
    )
    loaded.add_tokens(
        [
            AddedToken(text, **_flags(entry, special=text in by_kind))
            for entry in entries
            if (text := token_text(entry))
        ]
    )
    known = {token.content for token in loaded.get_added_tokens_decoder().values()}
    loaded.add_special_tokens([AddedToken(text) for text in (*by_kind, *others) if text not in known])
    _refuse_double_ids(path, loaded.get_vocab(with_added_tokens=True))
    return LoadedTokenizer(loaded, unknown)


_PARTS = ("truncation", "padding", "normalizer", "pre_tokenizer", "post_processor", "decoder")
_LIKE_NONE: dict[str, Any] = {"version": "1.0", **dict.fromkeys(_PARTS)}


def _normalized_texts(
    content: Mapping[str, Any], entries: Iterable[Mapping[str, Any]], names: Iterable[str]
) -> list[str]:
    """The texts of added tokens that the library looks for in normalized text."""
    every = [*objects(content.get("added_tokens")), *entries]
    as_they_are = {token_text(entry) for entry in every if entry.get("normalized") is False}
    texts = {text for entry in (*every, *names) if (text := token_text(entry))}
    return sorted(texts - as_they_are)


def _refuse_lost_tokens(path: Path, normalizer: dict[str, Any] | None, texts: Iterable[str]) -> None:
    """Refuse a normalizer that takes an added token away.

    Where it leaves nothing of one, the library finds it everywhere and panics; where it makes two alike, the library
    takes either, another one in each run.
    """
    if normalizer is None:
        return
    from tokenizers import Tokenizer  # noqa: PLC0415 - only models with such a tokenizer need it

    nothing = {"model": {"type": "BPE", "vocab": {}, "merges": []}, "added_tokens": []}
    own = json.dumps(_LIKE_NONE | nothing | {"normalizer": normalizer})
    probe = guarded(
        path, lambda: Tokenizer.from_str(own).normalizer, "is no tokenizer that can be read", TokenizerError
    )
    known: dict[str, str] = {}
    for text in texts:
        normalized = probe.normalize_str(text)
        if not normalized:
            raise library_parts.UnknownStepError(
                f"has a normalizer that leaves nothing of added token {quoted(text)}"
            )
        other = known.setdefault(normalized, text)
        if other != text:
            raise library_parts.UnknownStepError(
                f"has a normalizer that makes added tokens {quoted(other)} and {quoted(text)} alike"
            )


def _copied_steps(
    path: Path, content: Mapping[str, Any], texts: Iterable[str]
) -> tuple[dict[str, Any], TokenizerError | None]:
    """The steps that the library may take, and why one of them is left out."""
    steps: dict[str, Any] = {}
    unknown = None
    for part, copied in (
        ("normalizer", library_parts.normalizer),
        ("pre_tokenizer", library_parts.pre_tokenizer),
        ("decoder", library_parts.decoder),
    ):
        try:
            step = copied(content.get(part))
            if part == "normalizer":
                _refuse_lost_tokens(path, step, texts)
            steps[part] = step
        except library_parts.UnknownStepError as reason:
            unknown = unknown or TokenizerError(
                str(path),
                str(reason),
                "if you know which of llama.cpp's pre-tokenizers splits text like it, export with {setting} and use "
                "the GGUF file",
                setting="pre",
            )
    return steps, unknown


def _copied_tokens(content: Mapping[str, Any]) -> Any:
    """The added tokens without what nobody knows; what is none is left to the library to refuse."""
    entries = content.get("added_tokens", [])
    if not isinstance(entries, list):
        return entries
    names = ("id", "content", *_FLAGS)
    return [
        {name: entry[name] for name in names if name in entry} if isinstance(entry, dict) else entry
        for entry in entries
    ]


def _copied_model(content: Mapping[str, Any]) -> dict[str, Any]:
    model = section(content, "model")
    return {"type": "BPE", **{name: model[name] for name in _MODEL if name in model}}


def _refuse_double_ids(path: Path, vocab: Mapping[str, int]) -> None:
    """Refuse two tokens of one id, of which either would be kept, another one in each run.

    The library gives tokens that are added the numbers from the size of the vocabulary on, whether these are taken
    or not.
    """
    if len(set(vocab.values())) == len(vocab):
        return
    texts: dict[int, str] = {}
    for text, token_id in sorted(vocab.items()):
        if texts.setdefault(token_id, text) != text:
            raise TokenizerError(
                str(path),
                f"tokens {quoted(texts[token_id])} and {quoted(text)} are both number {token_id}",
                "fetch the file again",
            )


def _refuse_excess(path: Path, tokens: Iterable[object]) -> None:
    """Refuse added tokens whose texts together are longer than any model's."""
    n_bytes = sum(
        len(text.encode("utf-8", "replace")) for text in {token_text(token) or "" for token in tokens}
    )
    if n_bytes > MAX_ADDED_BYTES:
        raise TokenizerError(
            str(path),
            f"its added tokens have {n_bytes} bytes of text, the limit is {MAX_ADDED_BYTES}",
            "remove tokens that the model was not trained with",
        )


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
