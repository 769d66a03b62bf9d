"""SentencePiece-like vocabularies (`tokenizer.ggml.model` "llama"), merged by llama.cpp's own rules.

They differ from the sentencepiece library's in the details: no normalisation; any piece may come out of a merge, even
one that looks special.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from calibration.text.cutting import WholeTokens
from calibration.text.vocabulary import Vocabulary

__all__ = ["SpmTokenizer"]


class SpmTokenizer:
    """llama.cpp's tokenizer of type SPM (src/llama-vocab.cpp: llm_tokenizer_spm_session).

    The text is cut at whole tokens, a space is put before each piece that follows such a cut, and then neighbouring
    symbols are merged, highest score first, leftmost first among equals.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        """Take a vocabulary of kind `SPM`.

        Raises:
            TokenizerError: a BOS token is to be added, but nothing says which.
        """
        self._vocabulary = vocabulary
        self._bos_id = vocabulary.bos_id
        self._prefix = "" if vocabulary.add_space_prefix is False else " "
        self._unknown_id = vocabulary.special.ids.get("unk", 0)
        self._ids = vocabulary.ids
        self._scores: list[float] = np.asarray(vocabulary.scores, np.float32).tolist()
        self._pairs = {left + right for text in vocabulary.texts for left, right in pairwise(text)}
        self._whole_tokens = WholeTokens(vocabulary)
        self._cache: dict[str, list[int]] = {}

    @property
    def n_vocab(self) -> int:
        """Number of tokens."""
        return self._vocabulary.n_vocab

    @property
    def bos_id(self) -> int | None:
        """The token that opens every chunk, if the model wants one."""
        return self._bos_id

    def encode(self, text: str, *, parse_special: bool = False) -> npt.NDArray[np.int32]:
        """Token ids [T], without BOS."""
        ids: list[int] = []
        follows_cut = True
        for piece in self._whole_tokens.cut(text, parse_special=parse_special):
            if isinstance(piece, int):
                ids.append(piece)
                follows_cut = True
                continue
            prefixed = (self._prefix if follows_cut else "") + piece
            for segment in self._segments(prefixed.replace(" ", "▁")):
                segment_ids = self._cache.get(segment)
                if segment_ids is None:
                    segment_ids = self._cache[segment] = self._merge(segment)
                ids += segment_ids
            follows_cut = False
        return np.array(ids, np.int32)

    def _segments(self, text: str) -> Iterator[str]:
        """Cut where no token holds the two characters side by side: nothing can be merged across such a place."""
        start, pairs = 0, self._pairs
        for stop in range(1, len(text)):
            if text[stop - 1 : stop + 1] not in pairs:
                yield text[start:stop]
                start = stop
        if text:
            yield text[start:]

    def _merge(self, segment: str) -> list[int]:
        """Ids of a segment: pairs of neighbours that make a token are joined, by falling score."""
        symbols: list[str] = list(segment)
        before = list(range(-1, len(symbols) - 1))
        after = [*range(1, len(symbols)), -1]
        queue: list[tuple[float, int, int, int]] = []

        def offer(left: int, right: int) -> None:
            if left < 0 or right < 0:
                return
            joined = symbols[left] + symbols[right]
            token_id = self._ids.get(joined)
            if token_id is not None:
                heapq.heappush(queue, (-self._scores[token_id], left, right, len(joined)))

        for right in range(1, len(symbols)):
            offer(right - 1, right)
        while queue:
            _, left, right, size = heapq.heappop(queue)
            if not symbols[left] or not symbols[right] or len(symbols[left]) + len(symbols[right]) != size:
                continue  # one of them was merged with another neighbour meanwhile
            symbols[left] += symbols[right]
            symbols[right] = ""
            after[left] = after[right]
            if after[right] >= 0:
                before[after[right]] = left
            offer(before[left], left)
            offer(left, after[left])
        return [token_id for symbol in symbols if symbol for token_id in self._lookup(symbol)]

    def _lookup(self, symbol: str) -> list[int]:
        token_id = self._ids.get(symbol)
        if token_id is not None:
            return [token_id]
        # byte fallback; a vocabulary without byte tokens has the unknown token
        return [self._ids.get(f"<0x{byte:02X}>", self._unknown_id) for byte in symbol.encode("utf-8")]
