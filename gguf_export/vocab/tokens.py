"""The list of tokens as llama.cpp's loader wants it: as many as the embedding has rows, each text once."""

from __future__ import annotations

import re
from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from gguf import TokenType

from gguf_export.vocab.special_tokens import token_text
from quantize.containers.untrusted import quoted
from quantize.exceptions import TokenizerError

__all__ = ["ADDED_SCORE", "Slots", "Token", "added_token", "added_tokens_decoder"]

PAD_SCORE, ADDED_SCORE = -10000.0, -1000.0  # llama.cpp's converter


class Token(NamedTuple):
    """One entry of the vocabulary."""

    text: str
    kind: TokenType
    score: float = ADDED_SCORE


class Slots:
    """The tokens by id, as many as the embedding has rows; None where nobody put one."""

    def __init__(self, n_vocab: int) -> None:
        self.tokens: list[Token | None] = [None] * n_vocab

    def put(self, xid: Any, token: Token, source: Path) -> None:
        """Make `token`, which stands in the file `source`, the one with id `xid`."""
        if isinstance(xid, bool) or not isinstance(xid, int) or xid < 0 or not isinstance(token.text, str):
            raise TokenizerError(
                f"{source}: token {quoted(token.text)} has no valid id; fetch the file again"
            )
        self.fits(xid + 1, source)
        self.tokens[xid] = token

    def fits(self, n_tokens: int, source: Path) -> None:
        """Raise TokenizerError where `n_tokens` are more than the embedding has rows."""
        if n_tokens > len(self.tokens):
            raise TokenizerError(
                f"{source}: the tokenizer has {n_tokens} tokens, the embedding has {len(self.tokens)} rows; take the "
                f"tokenizer that belongs to the model, or remove the tokens from id {len(self.tokens)} on"
            )

    def fill(self, source: Path) -> list[Token]:
        """All tokens, gaps and empty texts named, every text unique (llama.cpp aborts where two are the same)."""
        named = [
            # what the loader would call it
            token._replace(text=f"[EMPTY_{xid}]") if token and not _as_loaded(token) else token
            for xid, token in enumerate(self.tokens)
        ]
        ids: dict[str, int] = {}
        for xid, token in enumerate(named):
            if token and ids.setdefault(_as_loaded(token), xid) != xid:
                raise TokenizerError(
                    f"{source}: tokens {ids[_as_loaded(token)]} and {xid} are both {quoted(token.text)}, and llama.cpp "
                    "needs every token once; rename or remove one of them"
                )
        return [token or _padding(xid, ids) for xid, token in enumerate(named)]


def _as_loaded(token: Token) -> str:
    return token.text.partition("\0")[0]  # the loader reads C strings


def _padding(xid: int, taken: Container[str]) -> Token:
    name = f"[PAD{xid}]"
    while name in taken:
        name = f"[{name}]"
    return Token(name, TokenType.UNUSED, PAD_SCORE)


def added_tokens_decoder(settings: Mapping[str, Any]) -> dict[int, dict[str, Any]]:
    """`added_tokens_decoder` of tokenizer_config.json: id -> its entry, by ascending id."""
    entries = settings.get("added_tokens_decoder")
    if not isinstance(entries, dict):
        return {}
    for xid, entry in entries.items():
        if not re.fullmatch("[0-9]{1,9}", xid) or not isinstance(entry, dict) or token_text(entry) is None:
            raise TokenizerError(
                f"tokenizer_config.json: added_tokens_decoder {quoted(xid)} is no token with an id"
            )
    return {int(xid): entries[xid] for xid in sorted(entries, key=int)}


def added_token(text: str, special: Any) -> Token:
    """A token that was added to a vocabulary: a control token if it says so or looks like one."""
    looks_special = (
        text in ("<pad>", "<mask>", "<2mass>", "[@BOS@]")
        or (text.startswith("<|") and text.endswith("|>"))
        or (text.startswith("<\uff5c") and text.endswith("\uff5c>"))  # DeepSeek's wide bars
        or (text.startswith("<unused") and text.endswith(">"))
    )
    if special or looks_special:
        return Token(text, TokenType.CONTROL)
    return Token(text.replace("▁", " "), TokenType.USER_DEFINED)  # llama.cpp matches them in unescaped text
