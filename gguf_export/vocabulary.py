"""The tokens of a checkpoint or a GGUF file: to cut text with, and to tell whether an id means the same in both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gguf import TokenType

from calibration.tokenizer import SpmTokenizer, Tokenizer, open_tokenizer
from gguf_export.reader import GGUFFile
from gguf_export.vocab import vocab_keys
from quantize.exceptions import TokenizerError
from quantize.shards import Checkpoint
from quantize.untrusted import quoted

__all__ = ["Vocabulary", "refuse_other_vocabulary", "tokenizer_of", "vocabulary_of"]


@dataclass(frozen=True)
class Vocabulary:
    """The text of each token, and which ids stand for nothing (padding may be called anything)."""

    name: str
    tokens: Sequence[str]
    unused: frozenset[int]


def vocabulary_of(source: Checkpoint | GGUFFile) -> Vocabulary:
    """The vocabulary as a GGUF file holds it.

    Raises:
        TokenizerError: there is none.
    """
    if isinstance(source, GGUFFile):
        keys = source.keys
    else:
        n_vocab = source.hparams.n_vocab
        try:
            pairs = vocab_keys(source.path, source.config, n_vocab)
        except (
            TokenizerError
        ):  # perhaps it lacks only the name of its pre-tokenizer, which does not matter here
            pairs = vocab_keys(source.path, source.config, n_vocab, "default")
        keys = {pair.key: pair.value for pair in pairs}
    tokens, types = keys.get("tokenizer.ggml.tokens"), keys.get("tokenizer.ggml.token_type", ())
    if not tokens:
        raise TokenizerError(f"{source.path}: holds no tokens")
    unused = frozenset(index for index, kind in enumerate(types) if kind == TokenType.UNUSED)
    return Vocabulary(str(source.path), tokens, unused)


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
    keys, prefix = source.keys, "tokenizer.ggml"
    kind = keys.get(f"{prefix}.model")
    if kind != "llama":
        raise TokenizerError(
            f"{source.path}: has a tokenizer of kind {quoted(kind)}, which is not read from GGUF files here; "
            "give the folder of the checkpoint, too"
        )
    tokens = keys[f"{prefix}.tokens"]
    n_token = len(tokens)
    scores, types = (keys.get(f"{prefix}.{name}") for name in ("scores", "token_type"))
    return SpmTokenizer(
        tokens,
        [0.0] * n_token if scores is None else scores,
        [int(TokenType.NORMAL)] * n_token if types is None else types,
        bos_of(source),
        add_space_prefix=bool(keys.get(f"{prefix}.add_space_prefix", True)),
        unknown_id=int(keys.get(f"{prefix}.unknown_token_id", 0)),
    )


def bos_of(source: Checkpoint | GGUFFile) -> int | None:
    """The token that opens each chunk, None where the model wants none (src/llama-vocab.cpp: its defaults)."""
    if not isinstance(source, GGUFFile):
        return open_tokenizer(source.path).bos_id
    keys, prefix = source.keys, "tokenizer.ggml"
    is_spm = keys.get(f"{prefix}.model") == "llama"
    if not keys.get(f"{prefix}.add_bos_token", is_spm):
        return None
    found = keys.get(f"{prefix}.bos_token_id", 1 if is_spm else None)
    return None if found is None else int(found)
