"""Whether the tokenizer of a checkpoint can become that of a GGUF file, and agrees with itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from gguf import TokenType

from calibration.text.json_values import token_text
from gguf_export.checking.findings import Finding, info, warning
from gguf_export.checking.template_checks import check_templates
from gguf_export.vocab import vocab_keys as vocab
from quantize.containers.keys import KeyValue
from quantize.containers.text_files import optional_object
from quantize.containers.untrusted import quoted
from quantize.exceptions import TokenizerError
from quantize.sources.checkpoint import Checkpoint
from quantize.telling import Remark

__all__ = ["check_tokenizer"]

CORRECT = "correct whichever is wrong"


def check_tokenizer(checkpoint: Checkpoint, raw: Mapping[str, Any], pre: str | None) -> Iterator[Finding]:
    """Look for everything that is wrong with the tokenizer.

    Args:
        checkpoint: the checkpoint.
        raw: its config.json as it is stored.
        pre: name of the pre-tokenizer, where it is not recognised.
    """
    remarks: list[Remark] = []
    path, n_vocab = checkpoint.path, checkpoint.hparams.n_vocab
    try:
        keys = vocab.vocab_keys(
            path, checkpoint.config, n_vocab, pre, remarks.append, checkpoint.family.vocab
        )
        settings = optional_object(path / "tokenizer_config.json") or {}
        yield from _added_tokens(path, settings)
    except TokenizerError as fault:
        yield Finding.of(fault, remedy="copy the tokenizer of the model there", place=str(path))
        return
    remedy = "correct the tokenizer's files if that was not meant"
    for remark in remarks:
        yield Finding.of_remark(remark, "warning", remedy=remedy, place="tokenizer")
    by_name = {kv.key.removeprefix("tokenizer.ggml."): kv for kv in keys}
    n_unused = sum(kind == TokenType.UNUSED for kind in by_name["token_type"].value)
    if n_unused:
        yield info("tokenizer", f"{n_unused} of {n_vocab} rows of the embedding have no token and are padded")
    yield from _special_tokens(by_name, settings, raw)
    yield from _merges(by_name)
    yield from check_templates(str(path), path, keys)


def _special_tokens(
    keys: Mapping[str, KeyValue], settings: Mapping[str, Any], raw: Mapping[str, Any]
) -> Iterator[Finding]:
    """Whether the tokens of beginning and end are there, and the same in tokenizer_config.json and config.json."""
    tokens: list[str] = keys["tokens"].value
    for kind in ("bos", "eos"):
        if f"{kind}_token_id" not in keys:
            yield warning(
                "tokenizer", f"there is no {kind.upper()} token", "name it in tokenizer_config.json"
            )
        text, stated = token_text(settings.get(f"{kind}_token")), raw.get(f"{kind}_token_id")
        token_id = tokens.index(text) if text in tokens else None
        if type(stated) is int and token_id is not None and stated != token_id:
            yield warning(
                "config.json",
                f"{kind}_token_id is {stated}, but {quoted(text)} of tokenizer_config.json is token {token_id}",
                CORRECT,
            )


def _added_tokens(path: Path, settings: Mapping[str, Any]) -> Iterator[Finding]:
    """Tokens that added_tokens.json and tokenizer_config.json call differently."""
    added = optional_object(path / "added_tokens.json") or {}
    decoder = settings.get("added_tokens_decoder")
    for text, token_id in added.items():
        other = decoder.get(str(token_id)) if isinstance(decoder, dict) else None
        if isinstance(other, dict) and other.get("content") != text:
            yield warning(
                "added_tokens.json",
                f"token {quoted(token_id)} is {quoted(text)}, tokenizer_config.json calls it "
                f"{quoted(other.get('content'))}",
                CORRECT,
            )


def _merges(keys: Mapping[str, KeyValue]) -> Iterator[Finding]:
    """Merges of tokens that do not exist: the tokenizer was cut, or mixed from two."""
    if "merges" not in keys:
        return
    tokens = set(keys["tokens"].value)
    n_lost = 0
    for merge in keys["merges"].value:
        left, _, right = merge.partition(" ")
        n_lost += not {left, right, left + right} <= tokens
    if n_lost:
        yield warning(
            "tokenizer.json",
            f"{n_lost} of {len(keys['merges'].value)} merges are of tokens that do not exist",
            "copy the tokenizer that belongs to the model",
        )
