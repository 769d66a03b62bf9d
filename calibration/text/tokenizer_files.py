"""The files of a tokenizer in a Hugging Face folder, read with suspicion: any value may be of any type."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from calibration.text.json_values import section, token_text
from calibration.text.tokenizer_json import LoadedTokenizer, load_tokenizer
from quantize.containers.text_files import optional_object, optional_text
from quantize.containers.untrusted import guarded, quoted, read_bytes
from quantize.exceptions import TokenizerError

__all__ = ["TokenizerFiles", "load_sentencepiece"]

MAX_MODEL_BYTES = 2**24  # of a tokenizer.model; the largest in the wild are near 5 MB


@dataclass(frozen=True)
class TokenizerFiles:
    """The files that say which tokens a model has; each is read when it is asked for, and once.

    Raises:
        TokenizerError: a file cannot be read or holds no JSON object; on first access.
    """

    folder: Path

    @property
    def pieces_path(self) -> Path:
        """Path of tokenizer.model, a SentencePiece model, which need not be there."""
        return self.folder / "tokenizer.model"

    @property
    def json_path(self) -> Path:
        """Path of tokenizer.json, which need not be there."""
        return self.folder / "tokenizer.json"

    @cached_property
    def json(self) -> dict[str, Any]:
        """tokenizer.json, the tokenizers library's form; empty where there is none."""
        return self._object("tokenizer.json")

    @cached_property
    def settings(self) -> dict[str, Any]:
        """tokenizer_config.json, transformers' settings; empty where there is none."""
        return self._object("tokenizer_config.json")

    @cached_property
    def config(self) -> dict[str, Any]:
        """config.json as it stands in the folder; empty where there is none."""
        return self._object("config.json")

    @cached_property
    def added_ids(self) -> dict[str, int]:
        """added_tokens.json: text of a token -> its id; empty where there is none."""
        ids = self._object("added_tokens.json")
        for text, token_id in ids.items():
            if type(token_id) is not int or token_id < 0:
                raise TokenizerError(
                    str(self.folder / "added_tokens.json"),
                    f"token {quoted(text)} has no valid id",
                    "fetch the file again",
                )
        return ids

    @cached_property
    def decoder(self) -> dict[int, dict[str, Any]] | None:
        """`added_tokens_decoder` of tokenizer_config.json, id -> entry by ascending id; None where there is none.

        Every entry has a text (`token_text`).
        """
        entries = self.settings.get("added_tokens_decoder")
        if not isinstance(entries, dict):
            return None
        for key, entry in entries.items():
            if (
                not re.fullmatch("[0-9]{1,9}", key)
                or not isinstance(entry, dict)
                or token_text(entry) is None
            ):
                raise TokenizerError(
                    str(self.folder / "tokenizer_config.json"),
                    f"added_tokens_decoder {quoted(key)} is no token with an id",
                )
        return {int(key): entries[key] for key in sorted(entries, key=int)}

    @cached_property
    def loaded(self) -> LoadedTokenizer:
        """tokenizer.json in the tokenizers library, see `load_tokenizer`."""
        added = None if self.decoder is not None else self.added_ids
        return load_tokenizer(self.json_path, self.json, self.settings, self.decoder, added or {})

    @property
    def library(self) -> Any:
        """`loaded.library`: what knows the tokens of tokenizer.json, whether it can cut text or not."""
        return self.loaded.library

    @property
    def has_pieces(self) -> bool:
        """Whether there is a tokenizer.model, which goes before tokenizer.json."""
        return self.pieces_path.exists()

    @property
    def is_sentencepiece_like(self) -> bool:
        """Whether tokenizer.json holds what SentencePiece would: a BPE that falls back to `<0x..>` tokens."""
        model = section(self.json, "model")
        is_fallback = model.get("type") == "BPE" and bool(model.get("byte_fallback"))
        return is_fallback and section(self.json, "decoder").get("type") == "Sequence"

    def refuse_absence(self) -> None:
        """Refuse a folder without tokenizer.

        Raises:
            TokenizerError: there is neither tokenizer.model nor tokenizer.json.
        """
        if self.has_pieces or self.json:
            return
        message, remedy = "has neither tokenizer.model nor tokenizer.json", "copy the tokenizer's files there"
        if (self.folder / "tekken.json").exists():
            message, remedy = (
                "has only a tekken.json",
                "add the tokenizer.json of its Hugging Face form",
            )
        elif (self.folder / "vocab.json").exists():
            message, remedy = (
                "has only a vocab.json",
                "save the tokenizer with transformers to get a tokenizer.json",
            )
        elif ranks := sorted(path.name for path in self.folder.glob("*tiktoken*")):
            message, remedy = f"has only a {ranks[0]}", "add the tokenizer.json of its Hugging Face form"
        raise TokenizerError(str(self.folder), message, remedy)

    def merges(self) -> list[str]:
        """Merges as "left right" by rank, from tokenizer.json or else merges.txt; a space within becomes U+0120.

        Raises:
            TokenizerError: there are none, or one is no pair.
        """
        merges = section(self.json, "model").get("merges")
        if not merges:
            lines = (optional_text(self.folder / "merges.txt") or "").splitlines()
            pairs = [line.split() for line in lines if not line.startswith("#version")]
            merges = [pair for pair in pairs if len(pair) == 2]
        if not isinstance(merges, list) or not merges:
            raise TokenizerError(
                str(self.json_path),
                "has no merges, and there is no merges.txt",
                "fetch the tokenizer again",
            )
        joined = []
        for merge in merges:
            pair = merge if isinstance(merge, list) else merge.split(" ") if isinstance(merge, str) else []
            if len(pair) != 2 or not all(isinstance(side, str) for side in pair):
                raise TokenizerError(
                    str(self.json_path), f"merge {quoted(merge)} is no pair", "fetch the tokenizer again"
                )
            joined.append(" ".join(side.replace(" ", "Ġ") for side in pair))
        return joined

    def _object(self, name: str) -> dict[str, Any]:
        return optional_object(self.folder / name) or {}


def load_sentencepiece(path: Path) -> Any:
    """The model in a tokenizer.model (sentencepiece.SentencePieceProcessor); all of its pieces are text.

    Raises:
        TokenizerError: it is damaged.
    """
    import sentencepiece  # noqa: PLC0415 - only models with such a tokenizer need it

    data = read_bytes(path, MAX_MODEL_BYTES, TokenizerError)
    sentencepiece.set_min_log_level(4)  # the library would print faults that are raised below, too
    model = sentencepiece.SentencePieceProcessor()
    guarded(path, lambda: model.LoadFromSerializedProto(data), "is no SentencePiece model", TokenizerError)
    guarded(
        path,
        lambda: [model.IdToPiece(token_id) for token_id in range(model.GetPieceSize())],
        "has a piece that is no text",
        TokenizerError,
    )
    return model
