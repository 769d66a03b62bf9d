"""Text -> token ids, the way llama.cpp does it, for a Hugging Face folder or a GGUF file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from calibration.text.byte_level import ByteLevelTokenizer, JsonTokenizer
from calibration.text.folder_vocabulary import read_vocabulary
from calibration.text.pretokenizers import recognised_pre, refuse_unknown_pre
from calibration.text.splits import SPLITS
from calibration.text.spm import SpmTokenizer
from calibration.text.tokenizer_files import TokenizerFiles
from calibration.text.tokens import MAX_TOKENS
from calibration.text.vocabulary import BYTE_LEVEL, SPM, Vocabulary, vocabulary_of_keys
from quantize.containers.untrusted import quoted
from quantize.exceptions import TokenizerError
from quantize.families.vocab_rules import LLAMA_VOCAB, VocabRules
from quantize.sources.checkpoint import Checkpoint
from quantize.sources.gguf_file import GGUFFile

__all__ = ["Tokenizer", "Tokens", "open_tokenizer", "tokenizer_of", "vocabulary_of"]

Tokens = npt.NDArray[np.int32]


class Tokenizer(Protocol):
    """A way from text to token ids."""

    @property
    def n_vocab(self) -> int:
        """Number of tokens; every id is below it."""
        ...

    @property
    def bos_id(self) -> int | None:
        """The token that opens every chunk, None where the model wants none (`add_bos_token` false)."""
        ...

    def encode(self, text: str, *, parse_special: bool = False) -> Tokens:
        """Token ids [T], without BOS; with `parse_special` the texts of control tokens become those tokens."""
        ...


def open_tokenizer(folder: str | Path) -> Tokenizer:
    """The tokenizer of a Hugging Face folder, as llama.cpp's converter would carry it over.

    `tokenizer.model` goes before `tokenizer.json`; a tokenizer.json that is BPE with byte fallback becomes an SPM
    vocabulary whose scores are all equal, as in llama.cpp. A byte-level BPE cuts text as llama.cpp's pre-tokenizer does
    that the converter recognises it by, without the normalizer of tokenizer.json; if none is recognised, as
    tokenizer.json says.

    Raises:
        TokenizerError: there is none, or it is damaged.
    """
    files = TokenizerFiles(Path(folder))
    n_vocab = files.config.get("vocab_size")
    is_size = type(n_vocab) is int and 0 < n_vocab <= MAX_TOKENS
    vocabulary = _vocabulary_of_files(files, n_vocab if is_size else None, LLAMA_VOCAB)
    return _tokenizer_of_files(files, vocabulary)


def vocabulary_of(source: Checkpoint | GGUFFile) -> Vocabulary:
    """The vocabulary of a model, as a GGUF file of it holds it.

    Raises:
        TokenizerError: there is none, it is damaged, or it does not fit the embedding.
    """
    if source.kind == "checkpoint":
        return _vocabulary_of_files(TokenizerFiles(source.path), source.hparams.n_vocab, source.family.vocab)
    embedding = source.tensors.get("token_embd.weight")
    n_vocab = None if embedding is None else embedding.spec.n_row
    return vocabulary_of_keys(str(source.path), source.keys, source.types, n_vocab)


def tokenizer_of(source: Checkpoint | GGUFFile, pre: str | None = None) -> Tokenizer:
    """The tokenizer of a model.

    `pre` names the pre-tokenizer by which llama.cpp will cut its text, where the model's own is unknown. A folder's
    byte-level BPE that llama.cpp does not know is used as it stands in tokenizer.json.

    Raises:
        TokenizerError: there is none, it is damaged, or it is that of a GGUF file and of another kind than SPM and
            byte-level BPE.
    """
    if source.kind == "checkpoint":
        files, n_vocab = TokenizerFiles(source.path), source.hparams.n_vocab
        return _tokenizer_of_files(files, _vocabulary_of_files(files, n_vocab, source.family.vocab, pre))
    vocabulary = vocabulary_of(source)
    if vocabulary.kind == SPM:
        return SpmTokenizer(vocabulary)
    if vocabulary.kind == BYTE_LEVEL:
        return ByteLevelTokenizer(vocabulary)
    raise TokenizerError(
        vocabulary.label,
        f"has a tokenizer of kind {quoted(vocabulary.kind)}, which is not read from GGUF files here",
        "give the folder of the checkpoint, too",
    )


def _tokenizer_of_files(files: TokenizerFiles, vocabulary: Vocabulary) -> Tokenizer:
    if vocabulary.kind == SPM:
        return SpmTokenizer(vocabulary)
    if vocabulary.pre in SPLITS:
        return ByteLevelTokenizer(vocabulary)
    return JsonTokenizer(files, vocabulary)


def _vocabulary_of_files(
    files: TokenizerFiles, n_vocab: int | None, rules: VocabRules, pre: str | None = None
) -> Vocabulary:
    """The vocabulary in a folder, with its pre-tokenizer where that is given or recognised."""
    vocabulary = read_vocabulary(files, n_vocab, rules=rules)
    if vocabulary.kind == SPM:
        return vocabulary
    refuse_unknown_pre(pre)
    if pre is None and files.loaded.unknown is None:
        pre = recognised_pre(files)
    return replace(vocabulary, pre=pre)
