"""The vocabulary of a model: tokenizer files -> tokenizer.* keys, as llama.cpp's converter writes them.

Three kinds of tokenizer (conversion/llama.py: set_vocab): a SentencePiece `tokenizer.model`, its likeness in
tokenizer.json, and a byte-level BPE in tokenizer.json.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gguf import GGUFValueType, TokenType

from calibration.text.tokenizer import load_sentencepiece
from gguf_export.metadata.model_keys import KeyValue
from gguf_export.vocab import tokenizer_json
from gguf_export.vocab.special_tokens import special_keys
from gguf_export.vocab.tokens import Slots, Token, added_token, added_tokens_decoder
from quantize.containers.text_files import optional_object
from quantize.exceptions import TokenizerError
from quantize.telling import Note, discard

__all__ = ["vocab_keys"]

_CODE_LLAMA, _GRANITE = 32016, 49152  # vocabulary sizes by which the converter knows them
_CODE_LLAMA_EOT = 32010


def vocab_keys(
    path: Path,
    config: Mapping[str, Any],
    n_vocab: int,
    pre: str | None = None,
    note: Note = discard,
) -> list[KeyValue]:
    """The tokenizer.* keys of the model in folder `path`, in llama.cpp's order.

    Args:
        path: the model's folder.
        config: config.json; its `vocab_size` tells CodeLlama and Granite.
        n_vocab: rows of the embedding: the list of tokens gets exactly this length.
        pre: name of the pre-tokenizer of a byte-level BPE, given by hand where it is not recognised.
        note: told, in one line each, what was left out or overruled.

    Raises:
        TokenizerError: there is no tokenizer, it is damaged or of an unsupported kind, its pre-tokenizer is unknown, or
            it has more tokens than the embedding has rows.
    """
    tokenizer = optional_object(path / "tokenizer.json") or {}
    settings = optional_object(path / "tokenizer_config.json") or {}
    keys = []
    if isinstance(settings.get("add_prefix_space"), bool):
        keys.append(KeyValue.flag("tokenizer.ggml.add_space_prefix", settings["add_prefix_space"]))

    slots = Slots(n_vocab)
    merges: list[str] = []
    model, found = "llama", "default"
    if (path / "tokenizer.model").exists():
        source = path / "tokenizer.model"
        _put_sentencepiece(slots, source, settings)
    elif not tokenizer:
        raise TokenizerError(_no_tokenizer(path))
    elif tokenizer_json.is_sentencepiece_like(tokenizer):
        source = path / "tokenizer.json"
        tokenizer_json.put_sentencepiece_like(slots, source, tokenizer, settings)
    else:
        source, model = path / "tokenizer.json", "gpt2"
        found = tokenizer_json.put_byte_level(slots, source, tokenizer, settings, pre, note)
        merges = tokenizer_json.merges_of(source, tokenizer)
    if pre is not None and model != "gpt2":
        raise TokenizerError(
            f"{source}: only a byte-level BPE has a pre-tokenizer to be named; leave --pre out"
        )

    tokens = slots.fill(source)
    strings, prefix = GGUFValueType.STRING, "tokenizer.ggml"
    keys += [KeyValue.text(f"{prefix}.model", model), KeyValue.text(f"{prefix}.pre", found)]
    keys.append(KeyValue.array(f"{prefix}.tokens", [token.text for token in tokens], strings))
    if model == "llama":
        scores = [token.score for token in tokens]
        keys.append(KeyValue.array(f"{prefix}.scores", scores, GGUFValueType.FLOAT32))
    kinds = [int(token.kind) for token in tokens]
    keys.append(KeyValue.array(f"{prefix}.token_type", kinds, GGUFValueType.INT32))
    if model == "gpt2":
        keys.append(KeyValue.array(f"{prefix}.merges", merges, strings))
    keys += special_keys(path, tokenizer, settings, n_vocab, note)
    if config.get("vocab_size") == _CODE_LLAMA:
        # its infill ids have no keys in the converter's writer, which leaves the end of turn
        keys = _set(keys, KeyValue.u32(f"{prefix}.eot_token_id", _CODE_LLAMA_EOT))
    if config.get("vocab_size") == _GRANITE:
        keys = _set(keys, KeyValue.flag(f"{prefix}.add_bos_token", False))
    return keys


def _set(keys: Sequence[KeyValue], change: KeyValue) -> list[KeyValue]:
    """Replace a key where it stands; a new one comes last."""
    return list({kv.key: kv for kv in (*keys, change)}.values())


def _no_tokenizer(path: Path) -> str:
    if (path / "tekken.json").exists():
        return f"{path}: has only a tekken.json; add the tokenizer.json of its Hugging Face form"
    if (path / "vocab.json").exists():
        return f"{path}: has only a vocab.json; save the tokenizer with transformers to get a tokenizer.json"
    return f"{path}: has neither tokenizer.model nor tokenizer.json; copy the tokenizer's files there"


def _put_sentencepiece(slots: Slots, source: Path, settings: Mapping[str, Any]) -> None:
    """Pieces of tokenizer.model, over them added_tokens.json, over them `added_tokens_decoder`."""
    model = load_sentencepiece(source)
    slots.fits(model.GetPieceSize(), source)
    for xid in range(model.GetPieceSize()):
        slots.put(xid, _piece(model, xid), source)
    added = source.with_name("added_tokens.json")
    for text, xid in (optional_object(added) or {}).items():
        slots.put(xid, Token(text, TokenType.USER_DEFINED), added)
    for xid, entry in added_tokens_decoder(settings).items():
        slots.put(
            xid,
            added_token(entry["content"], entry.get("special")),
            source.with_name("tokenizer_config.json"),
        )


def _piece(model: Any, xid: int) -> Token:
    kind = TokenType.NORMAL  # pieces that the user defined, too, as in the converter
    if model.IsUnknown(xid):
        kind = TokenType.UNKNOWN
    elif model.IsControl(xid):
        kind = TokenType.CONTROL
    elif model.IsUnused(xid):
        kind = TokenType.UNUSED
    elif model.IsByte(xid):
        kind = TokenType.BYTE
    return Token(model.IdToPiece(xid), kind, model.GetScore(xid))
