"""The vocabulary of a Hugging Face folder, as llama.cpp's converter reads it (conversion/llama.py: set_vocab).

There are three kinds of tokenizer: a SentencePiece `tokenizer.model`, its likeness in tokenizer.json (BPE with byte
fallback), and a byte-level BPE in tokenizer.json.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from gguf import TokenType

from calibration.text.json_values import objects, token_text
from calibration.text.special_tokens import SpecialTokens, read_special_tokens
from calibration.text.tokenizer_files import TokenizerFiles, load_sentencepiece
from calibration.text.tokenizer_json import named_tokens
from calibration.text.tokens import Token, TokenList, added_token
from calibration.text.vocabulary import BYTE_LEVEL, SPM, Vocabulary
from quantize.containers.untrusted import quoted
from quantize.exceptions import TokenizerError
from quantize.families.vocab_rules import LLAMA_VOCAB, VocabRules
from quantize.telling import Note, discard

__all__ = ["read_vocabulary"]

ADDED = (TokenType.CONTROL, TokenType.USER_DEFINED)


def read_vocabulary(
    files: TokenizerFiles,
    n_vocab: int | None = None,
    note: Note = discard,
    rules: VocabRules = LLAMA_VOCAB,
) -> Vocabulary:
    """The vocabulary in a folder; the name of a byte-level pre-tokenizer stands in no file and is left out.

    Args:
        files: the tokenizer's files.
        n_vocab: rows of the embedding, to which the tokens are padded; None where it is not known.
        note: receives a remark for each fact that was left out or overruled.
        rules: those of the model's family.

    Raises:
        TokenizerError: there is no tokenizer, it is damaged or of an unsupported kind, it has more tokens than the
            embedding has rows, or it lacks one that the family must have.
    """
    files.refuse_absence()
    add_space_prefix = files.settings.get("add_prefix_space") if rules.add_space_prefix else None
    tokens = TokenList(n_vocab)
    kind, path = SPM, files.json_path
    merges: list[str] = []
    if files.has_pieces:
        path = files.pieces_path
        _put_sentencepiece(tokens, files, rules.flags_decide)
    elif files.is_sentencepiece_like:
        _put_sentencepiece_like(tokens, files)
    else:
        kind = BYTE_LEVEL
        _put_byte_level(tokens, files)
        merges = files.merges()
    completed = tokens.complete(path)
    return Vocabulary(
        label=str(files.folder),
        kind=kind,
        texts=[token.text for token in completed],
        types=[int(token.kind) for token in completed],
        scores=[token.score for token in completed] if kind == SPM else (),
        merges=merges,
        special=_special_tokens(files, completed, rules, note),
        add_space_prefix=add_space_prefix if isinstance(add_space_prefix, bool) else None,
    )


def _special_tokens(
    files: TokenizerFiles, tokens: Sequence[Token], rules: VocabRules, note: Note
) -> SpecialTokens:
    """Those that the files name, behind them those that the family has where they name none."""
    named = read_special_tokens(files, len(tokens), note)
    ids = dict(named.ids)
    missing = {kind: text for kind, text in rules.missing_ids.items() if kind not in ids}
    added = {}
    if missing:
        added = {token.text: token_id for token_id, token in enumerate(tokens) if token.kind in ADDED}
    for kind, text in missing.items():
        if text not in added:
            raise TokenizerError(
                str(files.folder),
                f"has no added token {quoted(text)}, which llama.cpp makes the model's {kind} token",
                "copy the tokenizer that belongs to the model",
            )
        ids[kind] = added[text]
    return SpecialTokens(ids, named.adds)


def _put_sentencepiece(tokens: TokenList, files: TokenizerFiles, flags_decide: bool) -> None:
    """Put the pieces of tokenizer.model, over them added_tokens.json, over them `added_tokens_decoder`."""
    model, path = load_sentencepiece(files.pieces_path), files.pieces_path
    tokens.refuse_excess(model.GetPieceSize(), path)
    for token_id in range(model.GetPieceSize()):
        tokens.put(token_id, _piece(model, token_id), path)
    for text, token_id in files.added_ids.items():
        tokens.put(token_id, Token(text, TokenType.USER_DEFINED), files.folder / "added_tokens.json")
    flagged = _token_by_flag if flags_decide else added_token
    for token_id, entry in (files.decoder or {}).items():
        token = flagged(entry["content"], special=bool(entry.get("special")))
        tokens.put(token_id, token, files.folder / "tokenizer_config.json")
    for entry in objects(files.json.get("added_tokens")) if flags_decide else ():
        token = flagged(token_text(entry) or "", special=bool(entry.get("special")))
        tokens.put(entry.get("id"), token, files.json_path)


def _token_by_flag(text: str, special: bool) -> Token:
    return Token(text, TokenType.CONTROL if special else TokenType.USER_DEFINED)


def _piece(model: Any, token_id: int) -> Token:
    kind = TokenType.NORMAL  # pieces that the user defined, too, as in the converter
    if model.IsUnknown(token_id):
        kind = TokenType.UNKNOWN
    elif model.IsControl(token_id):
        kind = TokenType.CONTROL
    elif model.IsUnused(token_id):
        kind = TokenType.UNUSED
    elif model.IsByte(token_id):
        kind = TokenType.BYTE
    return Token(model.IdToPiece(token_id), kind, model.GetScore(token_id))


def _put_sentencepiece_like(tokens: TokenList, files: TokenizerFiles) -> None:
    """Put a SentencePiece vocabulary in the form of tokenizer.json, which keeps no scores: all are equal."""
    by_kind, others = named_tokens(files.settings)
    special = {"<unk>", "<s>", "</s>", *by_kind, *others}
    n_base = files.library.get_vocab_size(with_added_tokens=False)
    for text, token_id in _by_id(files.library):
        if re.fullmatch("<0x[0-9A-Fa-f]{2}>", text):
            kind = TokenType.BYTE
        elif text in special:
            kind = TokenType.CONTROL
        else:
            kind = TokenType.NORMAL if token_id < n_base else TokenType.USER_DEFINED
        tokens.put(token_id, Token(text, kind), files.json_path)


def _put_byte_level(tokens: TokenList, files: TokenizerFiles) -> None:
    """Put the tokens of a byte-level BPE."""
    library, path = files.library, files.json_path
    added = library.get_added_tokens_decoder()
    for text, token_id in _by_id(library):
        tokens.put(token_id, _byte_level_token(library, text, added.get(token_id)), path)


def _byte_level_token(library: Any, text: str, added: Any) -> Token:
    if added is None:
        return Token(text, TokenType.NORMAL)
    if not added.normalized:  # llama.cpp looks for it in normalized text
        ids = library.encode(text, add_special_tokens=False).ids
        text = library.decode(ids, skip_special_tokens=False)
    return added_token(text, special=added.special)


def _by_id(library: Any) -> list[tuple[str, int]]:
    """All tokens and their ids, the highest id first: it decides whether they fit."""
    vocab: dict[str, int] = library.get_vocab(with_added_tokens=True)
    return sorted(vocab.items(), key=lambda item: -item[1])
