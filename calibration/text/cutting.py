"""Texts of whole tokens are looked for before anything else cuts a text (llama.cpp: tokenizer_st_partition)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from gguf import TokenType

from calibration.text.control_tokens import types_as_loaded
from calibration.text.vocabulary import Vocabulary

__all__ = ["WholeTokens"]


class WholeTokens:
    """The tokens that stand for their own text wherever it occurs: user-defined ones, and control tokens on demand."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._ids = vocabulary.ids
        user_defined: list[str] = []
        all_kinds: list[str] = []
        for text, kind in zip(vocabulary.texts, types_as_loaded(vocabulary), strict=True):
            if text and kind in (TokenType.USER_DEFINED, TokenType.CONTROL, TokenType.UNKNOWN):
                all_kinds.append(text)
                if kind == TokenType.USER_DEFINED:
                    user_defined.append(text)
        # llama.cpp looks for one token after the other, the longest first
        self._user_defined = sorted(user_defined, key=_descending_bytes)
        self._all_kinds = sorted(all_kinds, key=_descending_bytes)

    def cut(self, text: str, *, parse_special: bool) -> Sequence[str | int]:
        """The text as ids of such tokens and the texts between them; empty texts are dropped.

        With `parse_special` the texts of control and unknown tokens become those tokens, too.
        """
        pieces: list[str | int] = [text] if text else []
        pairs = set(pairwise(text))  # most tokens hold one that does not occur, and need not be searched for
        for token_text in self._all_kinds if parse_special else self._user_defined:
            if not pairs.issuperset(pairwise(token_text)) or token_text not in text:
                continue
            cut: list[str | int] = []
            for piece in pieces:
                if isinstance(piece, int):
                    cut.append(piece)
                    continue
                for index, between in enumerate(piece.split(token_text)):
                    if index:
                        cut.append(self._ids[token_text])
                    if between:
                        cut.append(between)
            pieces = cut
        return pieces


def _descending_bytes(text: str) -> int:
    return -len(text.encode())
