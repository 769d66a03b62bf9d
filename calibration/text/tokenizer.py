"""Text -> token ids, the way llama.cpp does it.

Two kinds: SentencePiece-like vocabularies (`tokenizer.ggml.model` "llama"), merged here by llama.cpp's own
rules, which differ from the sentencepiece library's in the details (no normalisation; any piece may come out
of a merge, even one that looks special); and byte-level BPE ("gpt2") through the `tokenizers` library.
"""

from __future__ import annotations

import heapq
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from quantize.containers.untrusted import guarded, read_bytes, read_json
from quantize.exceptions import TokenizerError

__all__ = [
    "BpeTokenizer",
    "SpmTokenizer",
    "Tokenizer",
    "Tokens",
    "load_sentencepiece",
    "open_tokenizer",
    "refuse_marked_subwords",
]

Tokens = npt.NDArray[np.int32]

# token types of llama.cpp (gguf.TokenType)
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6

MAX_MODEL_BYTES = 2**26  # of a tokenizer.model; the largest in the wild are near 5 MB
MAX_ID = 2**31 - 1  # of a token

LOOKS_SPECIAL = re.compile(
    "<pad>|<mask>|<2mass>|\\[@BOS@\\]|<\\|.*\\|>|<\uff5c.*\uff5c>|<unused.*>", re.DOTALL
)
"""Added tokens that llama.cpp's converter takes for special (conversion/base.py:does_token_look_special)."""


class Tokenizer(Protocol):
    """Whoever turns text into token ids."""

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


class SpmTokenizer:
    """llama.cpp's tokenizer of type SPM (src/llama-vocab.cpp: llm_tokenizer_spm_session, tokenizer_st_partition).

    The text is cut at user-defined tokens (and control tokens, if they are to be parsed), a space is put
    before each piece that follows a cut, and then neighbouring symbols are merged, highest score first,
    leftmost first among equals.
    """

    def __init__(
        self,
        tokens: Sequence[str],
        scores: Sequence[float],
        types: Sequence[int],
        bos_id: int | None,
        *,
        add_space_prefix: bool = True,
        unknown_id: int = 0,
    ) -> None:
        self._n_vocab = len(tokens)
        self._bos_id = bos_id
        self._prefix = " " if add_space_prefix else ""
        self._unknown_id = unknown_id
        self._ids = {token: index for index, token in enumerate(tokens)}
        self._scores = np.asarray(scores, np.float32).tolist()
        self._pairs = {left + right for token in tokens for left, right in pairwise(token)}
        by_type: dict[bool, list[str]] = {False: [], True: []}
        for token, kind in zip(tokens, types, strict=True):
            if token and kind in (USER_DEFINED, CONTROL, UNKNOWN):
                by_type[True].append(token)
                if kind == USER_DEFINED:
                    by_type[False].append(token)
        # llama.cpp looks for one token after the other, the longest first
        self._special = {key: sorted(found, key=lambda s: -len(s.encode())) for key, found in by_type.items()}
        self._cache: dict[str, list[int]] = {}

    @property
    def n_vocab(self) -> int:
        """Number of tokens."""
        return self._n_vocab

    @property
    def bos_id(self) -> int | None:
        """The token that opens every chunk, if the model wants one."""
        return self._bos_id

    def encode(self, text: str, *, parse_special: bool = False) -> Tokens:
        """Token ids [T], without BOS."""
        ids: list[int] = []
        after_special = True
        for piece in self._partition(text, self._special[parse_special]):
            if isinstance(piece, int):
                ids.append(piece)
                after_special = True
                continue
            whole = (self._prefix if after_special else "") + piece
            for segment in self._segments(whole.replace(" ", "▁")):
                found = self._cache.get(segment)
                if found is None:
                    found = self._cache[segment] = self._merge(segment)
                ids += found
            after_special = False
        return np.array(ids, np.int32)

    def _partition(self, text: str, specials: Sequence[str]) -> Iterator[str | int]:
        """Plain text and the ids of special tokens, alternating; empty texts are dropped."""
        pieces: list[str | int] = [text] if text else []
        for special in specials:
            if special not in text:
                continue
            split: list[str | int] = []
            for piece in pieces:
                if isinstance(piece, int):
                    split.append(piece)
                    continue
                for index, part in enumerate(piece.split(special)):
                    if index:
                        split.append(self._ids[special])
                    if part:
                        split.append(part)
            pieces = split
        return iter(pieces)

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
        symbols: list[str] = list(segment)
        before = list(range(-1, len(symbols) - 1))
        after = [*range(1, len(symbols)), -1]
        queue: list[tuple[float, int, int, int]] = []

        def offer(left: int, right: int) -> None:
            if left < 0 or right < 0:
                return
            joined = symbols[left] + symbols[right]
            found = self._ids.get(joined)
            if found is not None:
                heapq.heappush(queue, (-self._scores[found], left, right, len(joined)))

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
        return [found for symbol in symbols if symbol for found in self._lookup(symbol)]

    def _lookup(self, symbol: str) -> list[int]:
        found = self._ids.get(symbol)
        if found is not None:
            return [found]
        # byte fallback; a vocabulary without byte tokens has the unknown token
        return [self._ids.get(f"<0x{byte:02X}>", self._unknown_id) for byte in symbol.encode("utf-8")]


class BpeTokenizer:
    """Byte-level BPE of a tokenizer.json, without its post-processing."""

    def __init__(self, path: Path, bos_id: int | None) -> None:
        import tokenizers  # noqa: PLC0415 - only models with such a tokenizer need it

        self._path = path
        self._tokenizer = guarded(
            path,
            lambda: tokenizers.Tokenizer.from_file(str(path)),
            "is no tokenizer that can be read",
            TokenizerError,
        )
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._bos_id = bos_id

    @property
    def n_vocab(self) -> int:
        """Number of tokens, the added ones included."""
        return int(self._tokenizer.get_vocab_size(with_added_tokens=True))

    @property
    def bos_id(self) -> int | None:
        """The token that opens every chunk, if the model wants one."""
        return self._bos_id

    def encode(self, text: str, *, parse_special: bool = False) -> Tokens:
        """Token ids [T], without BOS."""
        self._tokenizer.encode_special_tokens = not parse_special  # the library's name for "as plain text"
        encoded = guarded(
            self._path,
            lambda: self._tokenizer.encode(text, add_special_tokens=False).ids,
            "cannot encode text",
            TokenizerError,
        )
        if max(encoded, default=0) > np.iinfo(np.int32).max:
            raise TokenizerError(f"{self._path}: a token's id is {max(encoded)}; no model has so many")
        return np.array(encoded, np.int32)


def open_tokenizer(folder: str | Path) -> Tokenizer:
    """The tokenizer of a Hugging Face folder, as llama.cpp's converter would carry it over (CONTRACT 1.5).

    `tokenizer.model` goes before `tokenizer.json`; a tokenizer.json that is BPE with byte fallback becomes an
    SPM vocabulary whose scores are all equal, as in llama.cpp.

    Raises:
        TokenizerError: there is none, or it is damaged.
    """
    folder = Path(folder)
    config = _optional_json(folder / "tokenizer_config.json")
    model = _optional_json(folder / "config.json")
    fast = _optional_json(folder / "tokenizer.json")
    if (folder / "tokenizer.model").is_file():
        vocab = _sentencepiece_vocab(folder, config, model.get("vocab_size"))
    elif not fast:
        raise TokenizerError(f"{folder}: there is neither tokenizer.model nor tokenizer.json")
    elif _section(fast, "model").get("type") == "BPE" and _section(fast, "model").get("byte_fallback"):
        vocab = _byte_fallback_vocab(folder / "tokenizer.json", fast)
    else:
        bos_id = _special_id("bos", config, model, fast)
        if not _adds_bos(config, fast, default=False):
            bos_id = None
        elif bos_id is None:
            raise TokenizerError(f"{folder}: tokenizer.json adds a BOS token, but no file says which")
        refuse_marked_subwords(folder / "tokenizer.json", fast)
        return BpeTokenizer(folder / "tokenizer.json", bos_id)
    bos_id = _special_id("bos", config, model, fast)
    return SpmTokenizer(
        *vocab,
        bos_id=(1 if bos_id is None else bos_id) if _adds_bos(config, fast, default=True) else None,
        add_space_prefix=config.get("add_prefix_space") is not False,
    )


Vocab = tuple[list[str], list[float], list[int]]  # tokens, scores, types


def refuse_marked_subwords(source: Path, fast: Mapping[str, Any]) -> None:
    """Such a BPE is not byte-level; and where its merges lack the mark, the library takes the process down.

    Raises:
        TokenizerError: the model of a tokenizer.json marks the inside or end of words.
    """
    model = _section(fast, "model")
    if model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        raise TokenizerError(f"{source}: a BPE that marks the inside or end of words is not supported")


def load_sentencepiece(path: Path) -> Any:
    """The model in a tokenizer.model (sentencepiece.SentencePieceProcessor), all of whose pieces are text.

    Raises:
        TokenizerError: it is damaged.
    """
    import sentencepiece  # noqa: PLC0415 - only models with such a tokenizer need it

    data = read_bytes(path, MAX_MODEL_BYTES, TokenizerError)
    sentencepiece.set_min_log_level(4)  # what it finds is said once, by us
    model = sentencepiece.SentencePieceProcessor()
    guarded(path, lambda: model.LoadFromSerializedProto(data), "is no SentencePiece model", TokenizerError)
    guarded(
        path,
        lambda: [model.id_to_piece(index) for index in range(model.get_piece_size())],
        "has a piece that is no text",
        TokenizerError,
    )
    return model


def _sentencepiece_vocab(folder: Path, config: Mapping[str, Any], n_vocab: object) -> Vocab:
    """Mirror of conversion/base.py:_create_vocab_sentencepiece."""
    model = load_sentencepiece(folder / "tokenizer.model")
    n_piece = model.get_piece_size()
    n_token = n_vocab if isinstance(n_vocab, int) and 0 < n_vocab <= 1 << 24 else n_piece
    tokens = [f"[PAD{index}]" for index in range(n_token)]
    scores, types = [-10000.0] * n_token, [UNUSED] * n_token
    for index in range(min(n_piece, n_token)):
        tokens[index], scores[index] = model.id_to_piece(index), model.get_score(index)
        types[index] = (
            UNKNOWN
            if model.is_unknown(index)
            else CONTROL
            if model.is_control(index)
            else UNUSED
            if model.is_unused(index)
            else BYTE
            if model.is_byte(index)
            else NORMAL
        )
    for text, index in _optional_json(folder / "added_tokens.json").items():
        if type(index) is int and 0 <= index < n_token:
            tokens[index], scores[index], types[index] = text, -1000.0, USER_DEFINED
    for key, token in _section(config, "added_tokens_decoder").items():
        if not (re.fullmatch("[0-9]{1,9}", key) and int(key) < n_token and isinstance(token, dict)):
            continue
        index, text = int(key), str(token.get("content", ""))
        special = bool(token.get("special")) or LOOKS_SPECIAL.fullmatch(text) is not None
        tokens[index] = text if special else text.replace("▁", " ")
        scores[index], types[index] = -1000.0, CONTROL if special else USER_DEFINED
    return tokens, scores, types


def _byte_fallback_vocab(path: Path, fast: Mapping[str, Any]) -> Vocab:
    """Mirror of gguf-py/gguf/vocab.py:LlamaHfVocab: all scores are equal."""
    ids = {**_section(_section(fast, "model"), "vocab")}
    added = _added_tokens(fast)
    special = {token["content"] for token in added if token.get("special")}
    extra = {token["content"]: token["id"] for token in added if token["content"] not in ids}
    ids.update(extra)
    if any(type(index) is not int for index in ids.values()) or sorted(ids.values()) != list(range(len(ids))):
        raise TokenizerError(f"{path}: the token ids are not 0 to {len(ids) - 1}, each once")
    tokens, types = [""] * len(ids), [NORMAL] * len(ids)
    for text, index in ids.items():
        tokens[index] = text
        if re.fullmatch("<0x[0-9A-Fa-f]{2}>", text):
            types[index] = BYTE
        elif text in special:
            types[index] = CONTROL
        elif text in extra:
            types[index] = USER_DEFINED
    return tokens, [-1000.0] * len(ids), types


def _adds_bos(config: Mapping[str, Any], fast: Mapping[str, Any], *, default: bool) -> bool:
    """Mirror of gguf-py/gguf/vocab.py:SpecialVocab: tokenizer.json's post-processor wins over the config's flag."""
    post = _section(fast, "post_processor")
    said: bool | None = None
    for processor in _objects(post.get("processors", [post])):
        kind = processor.get("type")
        if kind == "ByteLevel" and said is None:
            said = False
        elif kind == "RobertaProcessing":
            said = True
        elif kind == "TemplateProcessing":
            single = processor.get("single")
            if (
                isinstance(single, list)
                and len(single) > 1
                and "SpecialToken" in _section({"first": single[0]}, "first")
            ):
                said = True
    if said is not None:
        return said
    flag = config.get("add_bos_token")
    return flag if isinstance(flag, bool) else default


def _special_id(
    kind: str, config: Mapping[str, Any], model: Mapping[str, Any], fast: Mapping[str, Any]
) -> int | None:
    entry = config.get(f"{kind}_token")
    text = entry.get("content") if isinstance(entry, dict) else entry
    for token in _added_tokens(fast):
        if token["content"] == text:
            return int(token["id"])
    found = model.get(f"{kind}_token_id")
    return found if type(found) is int and 0 <= found <= MAX_ID else None


def _optional_json(path: Path) -> dict[str, Any]:
    return read_json(path, TokenizerError) if path.exists() else {}


def _objects(values: object) -> list[dict[str, Any]]:
    """The objects of a JSON list; nothing of what is no list or no object."""
    return [value for value in values if isinstance(value, dict)] if isinstance(values, list) else []


def _added_tokens(fast: Mapping[str, Any]) -> list[dict[str, Any]]:
    """`added_tokens` of a tokenizer.json that have a text and an id."""
    return [
        token
        for token in _objects(fast.get("added_tokens"))
        if isinstance(token.get("content"), str)
        and type(token.get("id")) is int
        and 0 <= token["id"] <= MAX_ID
    ]


def _section(mapping: Mapping[str, Any], key: str) -> dict[str, Any]:
    found = mapping.get(key)
    return found if isinstance(found, dict) else {}
