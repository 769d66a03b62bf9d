"""The list of tokens as llama.cpp's loader wants it: as many as the embedding has rows, each text once."""

from __future__ import annotations

from collections.abc import Container
from pathlib import Path
from typing import Any, NamedTuple

from gguf import TokenType

from quantize.containers.untrusted import quoted
from quantize.exceptions import TokenizerError

__all__ = ["MAX_TOKENS", "Token", "TokenList", "added_token"]

PAD_SCORE, ADDED_SCORE = -10000.0, -1000.0  # llama.cpp's converter
MAX_TOKENS = 2**24  # of a list whose length nothing else limits


class Token(NamedTuple):
    """One entry of the vocabulary."""

    text: str
    kind: TokenType
    score: float = ADDED_SCORE


class TokenList:
    """Tokens by id, put in any order and then completed to one for each row of the embedding."""

    def __init__(self, n_vocab: int | None) -> None:
        """Take the number of rows; None where it is unknown: then the list ends with the highest id."""
        self._n_vocab = n_vocab
        self._tokens: dict[int, Token] = {}

    def put(self, token_id: Any, token: Token, source: Path) -> None:
        """Give the id to `token`, which the file `source` names; an earlier holder of the id loses it.

        Raises:
            TokenizerError: the id is no row of the embedding.
        """
        if type(token_id) is not int or token_id < 0:
            raise TokenizerError(
                str(source), f"token {quoted(token.text)} has no valid id", "fetch the file again"
            )
        if self._n_vocab is None and token_id >= MAX_TOKENS:
            raise TokenizerError(
                str(source), f"token {quoted(token.text)} has id {token_id}, which no model has"
            )
        self.refuse_excess(token_id + 1, source)
        self._tokens[token_id] = token

    def refuse_excess(self, n_tokens: int, source: Path) -> None:
        """Refuse more tokens than the embedding has rows.

        Raises:
            TokenizerError: `n_tokens` are more.
        """
        if self._n_vocab is not None and n_tokens > self._n_vocab:
            raise TokenizerError(
                str(source),
                f"the tokenizer has {n_tokens} tokens, the embedding has {self._n_vocab} rows",
                "take the tokenizer that belongs to the model, or remove the tokens from id "
                f"{self._n_vocab} on",
            )

    def complete(self, source: Path) -> list[Token]:
        """All tokens by id: gaps are padded, empty texts are named, every text is unique.

        Raises:
            TokenizerError: two tokens have the same text, at which llama.cpp aborts.
        """
        n_vocab = max(self._tokens, default=-1) + 1 if self._n_vocab is None else self._n_vocab
        ids: dict[str, int] = {}
        for token_id in sorted(self._tokens):
            token = self._tokens[token_id]
            if not _as_loaded(token):
                token = self._tokens[token_id] = token._replace(
                    text=f"[EMPTY_{token_id}]"
                )  # the loader's name
            if ids.setdefault(_as_loaded(token), token_id) != token_id:
                raise TokenizerError(
                    str(source),
                    f"tokens {ids[_as_loaded(token)]} and {token_id} are both {quoted(token.text)}, and llama.cpp "
                    "needs every token once",
                    "rename or remove one of them",
                )
        return [self._tokens.get(token_id) or _padding(token_id, ids) for token_id in range(n_vocab)]


def added_token(text: str, special: bool) -> Token:
    """A token that was added to a vocabulary: a control token if it is special or looks so.

    The looks are those of llama.cpp's converter (conversion/base.py: does_token_look_special).
    """
    looks_special = (
        text in ("<pad>", "<mask>", "<2mass>", "[@BOS@]")
        or (text.startswith("<|") and text.endswith("|>"))
        or (text.startswith("<\uff5c") and text.endswith("\uff5c>"))  # DeepSeek's wide bars
        or (text.startswith("<unused") and text.endswith(">"))
    )
    if special or looks_special:
        return Token(text, TokenType.CONTROL)
    return Token(text.replace("▁", " "), TokenType.USER_DEFINED)  # llama.cpp matches them in unescaped text


def _as_loaded(token: Token) -> str:
    return token.text.partition("\0")[0]  # the loader reads C strings


def _padding(token_id: int, taken: Container[str]) -> Token:
    name = f"[PAD{token_id}]"
    while name in taken:
        name = f"[{name}]"
    return Token(name, TokenType.UNUSED, PAD_SCORE)
