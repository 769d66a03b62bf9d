"""The tokens of a checkpoint or a GGUF file: to cut text with, and to tell whether an id means the same in both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gguf import GGUFValueType, TokenType

from calibration.text.tokenizer import SpmTokenizer, Tokenizer, open_tokenizer
from gguf_export.vocab.vocab_keys import vocab_keys
from quantize.containers.untrusted import quoted
from quantize.exceptions import TokenizerError
from quantize.sources.checkpoint import Checkpoint
from quantize.sources.gguf_file import GGUFFile

__all__ = ["Vocabulary", "refuse_other_vocabulary", "tokenizer_of", "vocabulary_of"]


PREFIX = "tokenizer.ggml"


@dataclass(frozen=True)
class Vocabulary:
    """The text of each token, and which ids stand for nothing (padding may be called anything)."""

    name: str
    tokens: Sequence[str]
    unused: frozenset[int]


def vocabulary_of(source: Checkpoint | GGUFFile) -> Vocabulary:
    """The vocabulary as a GGUF file holds it.

    Raises:
        TokenizerError: there is none, or it does not fit the embedding.
    """
    if isinstance(source, GGUFFile):
        return Vocabulary(str(source.path), _tokens(source), _unused(_numbers(source, "token_type", 0)))
    n_vocab = source.hparams.n_vocab
    try:
        pairs = vocab_keys(source.path, source.config, n_vocab)
    except TokenizerError:  # perhaps it lacks only the name of its pre-tokenizer, which does not matter here
        pairs = vocab_keys(source.path, source.config, n_vocab, "default")
    keys = {pair.key: pair.value for pair in pairs}
    types = keys[f"{PREFIX}.token_type"]
    return Vocabulary(str(source.path), keys[f"{PREFIX}.tokens"], _unused(types))


def _unused(types: Sequence[int]) -> frozenset[int]:
    return frozenset(index for index, kind in enumerate(types) if kind == TokenType.UNUSED)


def _tokens(file: GGUFFile) -> list[str]:
    """The texts of a file's tokens, one for each row of its embedding."""
    tokens, embedding = file.keys.get(f"{PREFIX}.tokens"), file.tensors.get("token_embd.weight")
    is_text = file.types.get(f"{PREFIX}.tokens") == (GGUFValueType.ARRAY, GGUFValueType.STRING)
    if not tokens or not is_text:
        raise TokenizerError(f"{file.path}: holds no tokens")
    if embedding is not None and embedding.spec.n_row != len(tokens):
        raise TokenizerError(
            f"{file.path}: {len(tokens)} tokens for an embedding of {embedding.spec.n_row} rows; convert it again"
        )
    found: list[str] = tokens
    return found


def _numbers(file: GGUFFile, name: str, default: float) -> list[Any]:
    """One number for each token, `default` where the file has none."""
    n_token = len(_tokens(file))
    values = file.keys.get(f"{PREFIX}.{name}")
    if values is None:
        return [default] * n_token
    _, element = file.types[f"{PREFIX}.{name}"]
    if element not in (GGUFValueType.FLOAT32, GGUFValueType.INT32) or len(values) < n_token:
        raise TokenizerError(
            f"{file.path}: {PREFIX}.{name} is not one number for each token; convert it again"
        )
    return list(values[:n_token])


def _id(file: GGUFFile, name: str, default: int | None) -> int | None:
    found = file.keys.get(f"{PREFIX}.{name}_token_id", default)
    if found is not None and (type(found) is not int or not 0 <= found < len(_tokens(file))):
        raise TokenizerError(f"{file.path}: {PREFIX}.{name}_token_id is {quoted(found)}, which is no token")
    return found


def refuse_other_vocabulary(base: Vocabulary, other: Vocabulary) -> None:
    """Two models can be compared where the same id means the same text.

    Raises:
        TokenizerError: it does not.
    """
    told = f"{other.name}: its tokenizer is not that of {base.name}, so the numbers would mean nothing"
    if len(base.tokens) != len(other.tokens):
        raise TokenizerError(f"{told}: {len(other.tokens)} tokens here, {len(base.tokens)} there")
    for index, (one, text) in enumerate(zip(base.tokens, other.tokens, strict=True)):
        if one != text and not (index in base.unused and index in other.unused):
            raise TokenizerError(f"{told}: token {index} is {quoted(text)} here, {quoted(one)} there")


def tokenizer_of(source: Checkpoint | GGUFFile) -> Tokenizer:
    """What cuts text into the tokens of a model.

    Raises:
        TokenizerError: there is none, or it is that of a GGUF file and of the byte-level kind.
    """
    if not isinstance(source, GGUFFile):
        return open_tokenizer(source.path)
    kind = source.keys.get(f"{PREFIX}.model")
    if kind != "llama":
        raise TokenizerError(
            f"{source.path}: has a tokenizer of kind {quoted(kind)}, which is not read from GGUF files here; "
            "give the folder of the checkpoint, too"
        )
    return SpmTokenizer(
        _tokens(source),
        _numbers(source, "scores", 0.0),
        _numbers(source, "token_type", TokenType.NORMAL),
        bos_of(source),
        add_space_prefix=bool(source.keys.get(f"{PREFIX}.add_space_prefix", True)),
        unknown_id=_id(source, "unknown", 0) or 0,
    )


def bos_of(source: Checkpoint | GGUFFile) -> int | None:
    """The token that opens each chunk, None where the model wants none (src/llama-vocab.cpp: its defaults)."""
    if not isinstance(source, GGUFFile):
        return open_tokenizer(source.path).bos_id
    is_spm = source.keys.get(f"{PREFIX}.model") == "llama"
    if not source.keys.get(f"{PREFIX}.add_bos_token", is_spm):
        return None
    return _id(source, "bos", 1 if is_spm else None)
