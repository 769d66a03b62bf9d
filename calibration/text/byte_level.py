"""Byte-level BPE (`tokenizer.ggml.model` "gpt2"), merged by the tokenizers library."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from calibration.text.cutting import WholeTokens
from calibration.text.splits import SPLITS, of_known_characters
from calibration.text.tokenizer_files import TokenizerFiles
from calibration.text.vocabulary import Vocabulary
from quantize.containers.untrusted import guarded, quoted
from quantize.exceptions import TokenizerError

__all__ = ["ByteLevelTokenizer", "JsonTokenizer"]


class JsonTokenizer:
    """The tokenizer of a tokenizer.json as it stands there, without its post-processing."""

    def __init__(self, files: TokenizerFiles, vocabulary: Vocabulary) -> None:
        """Take a folder's files and the vocabulary in them.

        Raises:
            TokenizerError: tokenizer.json is damaged or cuts text as no known tokenizer does, or nothing says which BOS
                token is to be added.
        """
        if files.loaded.unknown is not None:
            raise files.loaded.unknown
        self._path, self._library = files.json_path, files.library
        self._vocabulary, self._bos_id = vocabulary, vocabulary.bos_id

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
        self._library.encode_special_tokens = not parse_special  # the library's name for "as plain text"
        return np.array(_encode(self._library, text, self._path), np.int32)


class ByteLevelTokenizer:
    """llama.cpp's tokenizer of type BPE (src/llama-vocab.cpp: llm_tokenizer_bpe_session), of a GGUF file's keys.

    The text is cut at whole tokens, then by the expressions of the pre-tokenizer; in each piece neighbouring symbols
    are merged by the rank of their merge.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        """Take a vocabulary of kind `BYTE_LEVEL`.

        Raises:
            TokenizerError: the pre-tokenizer is none that is known here, or nothing says which BOS token is to be
                added.
        """
        self._vocabulary, self._bos_id = vocabulary, vocabulary.bos_id
        self._whole_tokens = WholeTokens(vocabulary)
        self._merges = _merges(vocabulary)
        self._ghosts = _ghosts(vocabulary.ids, self._merges)
        self._library = _library(vocabulary, self._merges, self._ghosts)

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
        for piece in self._whole_tokens.cut(text, parse_special=parse_special):
            if isinstance(piece, int):
                ids.append(piece)
                continue
            piece_ids = _encode(self._library, piece, Path(self._vocabulary.label))
            ids += self._expanded(piece_ids) if self._ghosts else piece_ids
        return np.array(ids, np.int32)

    def _expanded(self, ids: list[int]) -> list[int]:
        """Ids without those of ghosts: of such a text the bytes that are tokens remain, as in llama.cpp."""
        n_vocab, id_of = self._vocabulary.n_vocab, self._vocabulary.ids
        expanded: list[int] = []
        for token_id in ids:
            if token_id < n_vocab:
                expanded.append(token_id)
            else:
                ghost = self._ghosts[token_id - n_vocab]
                expanded += [id_of[char] for char in ghost if char.isascii() and char in id_of]
        return expanded


def _encode(library: Any, text: str, source: Path) -> list[int]:
    ids: list[int] = guarded(
        source,
        lambda: library.encode(text, add_special_tokens=False).ids,
        "cannot encode text",
        TokenizerError,
    )
    return ids


def _merges(vocabulary: Vocabulary) -> list[tuple[str, str]]:
    """Pairs by rank; of equal ones the first counts."""
    pairs: dict[tuple[str, str], None] = {}
    for merge in vocabulary.merges:
        left, _, right = merge[1:].partition(" ")  # a space in front belongs to the left side
        pairs[merge[:1] + left, right] = None
    return list(pairs)


def _ghosts(ids: Mapping[str, int], merges: Sequence[tuple[str, str]]) -> list[str]:
    """Texts that merges are of or lead to and that are no tokens, which llama.cpp does not mind before they come up."""
    texts = dict.fromkeys(text for left, right in merges for text in (left, right, left + right))
    return [text for text in texts if text not in ids]


def _library(vocabulary: Vocabulary, merges: Sequence[tuple[str, str]], ghosts: Sequence[str]) -> Any:
    """The merges and the pre-tokenizer of a vocabulary as a tokenizers.Tokenizer; ghosts follow the tokens."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers  # noqa: PLC0415 - a GGUF file with such a tokenizer

    split = SPLITS.get(vocabulary.pre or "")
    if split is None:
        raise TokenizerError(
            vocabulary.label,
            f"how its pre-tokenizer {quoted(vocabulary.pre)} cuts text is not known here",
            "give the folder of the checkpoint, which has the tokenizer itself",
        )
    ids = {**vocabulary.ids, **{text: vocabulary.n_vocab + index for index, text in enumerate(ghosts)}}
    model = guarded(
        Path(vocabulary.label),
        lambda: models.BPE(ids, list(merges), ignore_merges=split.ignore_merges),
        "has merges that cannot be used",
        TokenizerError,
    )
    library = Tokenizer(model)
    library.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(of_known_characters(pattern)), "isolated") for pattern in split.patterns]
        + [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    return library
