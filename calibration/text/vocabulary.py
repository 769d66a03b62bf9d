"""The vocabulary of a model: all that its tokenizer's files, or the keys of a GGUF file, say of its tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from gguf import GGUFValueType, TokenType

from calibration.text.special_tokens import SpecialTokens
from calibration.text.splits import SPLITS
from quantize.containers.gguf import KeyType
from quantize.containers.untrusted import quoted
from quantize.exceptions import TokenizerError

__all__ = ["BYTE_LEVEL", "SPM", "Vocabulary", "refuse_other_vocabulary", "vocabulary_of_keys"]

SPM, BYTE_LEVEL = "llama", "gpt2"
"""Values of `tokenizer.ggml.model`: SentencePiece-like vocabularies, and byte-level BPE."""

PREFIX = "tokenizer.ggml"

_INFILL_NAMES = (
    *((kind, kind) for kind in ("fim_pre", "fim_suf", "fim_mid", "fim_pad", "fim_rep", "fim_sep")),
    *(("fim_pre", "prefix"), ("fim_suf", "suffix"), ("fim_mid", "middle")),  # as older files spell it
)


@dataclass(frozen=True)
class Vocabulary:
    """The tokens of a model, one for each row of its embedding."""

    label: str
    """The folder or file it is of, in messages."""
    kind: str
    """`SPM`, `BYTE_LEVEL`, or, of a GGUF file, any value of `tokenizer.ggml.model`."""
    texts: Sequence[str]
    types: Sequence[int]
    """A `gguf.TokenType` for each token."""
    scores: Sequence[float] = ()
    """SPM: the higher a token's score, the earlier it is merged."""
    merges: Sequence[str] = ()
    """Byte-level: pairs "left right", by rank."""
    special: SpecialTokens = field(default_factory=SpecialTokens)
    pre: str | None = None
    """Byte-level: llama.cpp's name of the pre-tokenizer, None where it is not known."""
    add_space_prefix: bool | None = None
    """SPM: whether a space is put before a text; None where it is not said, which means yes."""

    @property
    def n_vocab(self) -> int:
        """Number of tokens; every id is below it."""
        return len(self.texts)

    @cached_property
    def unused(self) -> frozenset[int]:
        """Ids that stand for nothing; such tokens may have any text."""
        return frozenset(token_id for token_id, kind in enumerate(self.types) if kind == TokenType.UNUSED)

    @cached_property
    def ids(self) -> dict[str, int]:
        """Id by text."""
        return {text: token_id for token_id, text in enumerate(self.texts)}

    @property
    def end_texts(self) -> tuple[str, str]:
        """The texts of BOS and EOS, which chat templates write; empty where there is no such token."""
        by_default = {"bos": 1, "eos": 2} if self.kind == SPM else {}
        ids = [self.special.ids.get(kind, by_default.get(kind, -1)) for kind in ("bos", "eos")]
        first, last = (self.texts[id_] if 0 <= id_ < self.n_vocab else "" for id_ in ids)
        return first, last

    @property
    def bos_id(self) -> int | None:
        """The token that opens every chunk, None where the model wants none.

        Where nothing is said, llama.cpp's defaults hold (src/llama-vocab.cpp: llama_vocab::impl::load).

        Raises:
            TokenizerError: there should be one, but nothing says which.
        """
        is_spm = self.kind == SPM
        by_default = is_spm or (self.pre in SPLITS and SPLITS[self.pre].adds_bos)
        if not self.special.adds.get("bos", by_default):
            return None
        bos_id = self.special.ids.get("bos", 1 if is_spm else None)
        if bos_id is None:
            raise TokenizerError(
                self.label,
                "a BOS token is to be added, but nothing says which",
                "add its id (bos_token_id)",
            )
        return bos_id


def vocabulary_of_keys(
    label: str, keys: Mapping[str, Any], types: Mapping[str, KeyType], n_vocab: int | None = None
) -> Vocabulary:
    """The vocabulary in a GGUF file.

    Args:
        label: the file, for messages.
        keys: its keys.
        types: their types.
        n_vocab: rows of its embedding, where it has one.

    Raises:
        TokenizerError: there is none, a key is of another type than llama.cpp's loader wants, or it does not fit the
            embedding.
    """
    reader = _Keys(label, keys, types)
    texts = reader.texts("tokens")
    if not texts:
        raise TokenizerError(label, "holds no tokens")
    if n_vocab is not None and n_vocab != len(texts):
        raise TokenizerError(
            label, f"{len(texts)} tokens for an embedding of {n_vocab} rows", "convert it again"
        )
    kind = reader.text("model") or ""
    return Vocabulary(
        label,
        kind,
        texts,
        types=reader.numbers("token_type", TokenType.NORMAL, len(texts)),
        scores=reader.numbers("scores", 0.0, len(texts)) if kind == SPM else (),
        merges=reader.texts("merges") if kind == BYTE_LEVEL else (),
        special=reader.special_tokens(len(texts)),
        pre=(reader.text("pre") or "default") if kind == BYTE_LEVEL else None,
        add_space_prefix=reader.flag("add_space_prefix"),
    )


def refuse_other_vocabulary(base: Vocabulary, other: Vocabulary) -> None:
    """Refuse to compare two models in which the same id means another text.

    Raises:
        TokenizerError: their vocabularies differ.
    """
    message = f"its tokenizer is not that of {base.label}, so the numbers would mean nothing"
    if base.n_vocab != other.n_vocab:
        raise TokenizerError(other.label, f"{message}: {other.n_vocab} tokens here, {base.n_vocab} there")
    unused = base.unused & other.unused
    for token_id, (base_text, text) in enumerate(zip(base.texts, other.texts, strict=True)):
        if base_text != text and token_id not in unused:
            raise TokenizerError(
                other.label, f"{message}: token {token_id} is {quoted(text)} here, {quoted(base_text)} there"
            )


@dataclass(frozen=True)
class _Keys:
    """The tokenizer.ggml.* keys of a file, whose types a stranger chose."""

    label: str
    keys: Mapping[str, Any]
    types: Mapping[str, KeyType]

    def text(self, name: str) -> str | None:
        value = self.keys.get(f"{PREFIX}.{name}")
        if value is None or isinstance(value, str):
            return value
        raise self._fault(name, "a text")

    def flag(self, name: str) -> bool | None:
        value = self.keys.get(f"{PREFIX}.{name}")
        if value is None or isinstance(value, bool):
            return value
        raise self._fault(name, "a flag")

    def texts(self, name: str) -> list[str]:
        key = f"{PREFIX}.{name}"
        values: list[str] = self.keys.get(key, [])
        if key in self.keys and self.types[key] != (GGUFValueType.ARRAY, GGUFValueType.STRING):
            raise TokenizerError(
                self.label, f"holds no {name}: {key} is not a list of texts", "convert it again"
            )
        return values

    def numbers(self, name: str, default: float, n_vocab: int) -> list[Any]:
        """One number for each token, `default` where the file has none."""
        key = f"{PREFIX}.{name}"
        if key not in self.keys:
            return [default] * n_vocab
        values, (_, element) = self.keys[key], self.types[key]
        if element not in (GGUFValueType.FLOAT32, GGUFValueType.INT32) or len(values) < n_vocab:
            raise TokenizerError(self.label, f"{key} is not one number for each token", "convert it again")
        return list(values[:n_vocab])

    def special_tokens(self, n_vocab: int) -> SpecialTokens:
        """The special tokens that matter to cutting text."""
        ids: dict[str, int] = {}
        for kind, name in (("bos", "bos"), ("unk", "unknown")):
            key = f"{PREFIX}.{name}_token_id"
            token_id = self.keys.get(key)
            if token_id is None:
                continue
            if type(token_id) is not int or not 0 <= token_id < n_vocab:
                raise TokenizerError(self.label, f"{key} is {quoted(token_id)}, which is no token")
            ids[kind] = token_id
        for kind, name in (("eos", "eos"), *_INFILL_NAMES):
            token_id = self.keys.get(f"{PREFIX}.{name}_token_id")
            if type(token_id) is int and 0 <= token_id < n_vocab:  # another is no fault to the loader
                ids[kind] = token_id
        adds_bos = self.flag("add_bos_token")
        return SpecialTokens(ids, {} if adds_bos is None else {"bos": adds_bos})

    def _fault(self, name: str, word: str) -> TokenizerError:
        key = f"{PREFIX}.{name}"
        return TokenizerError(
            self.label, f"{key} is {quoted(self.keys[key])}, not {word}", "convert it again"
        )
