"""What is wrong with a checkpoint, as far as headers and a sample of the weights tell, before hours of work."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from gguf_export.checking.findings import Finding, error, info, warning
from gguf_export.checking.weight_checks import check_weights
from gguf_export.files.text_files import optional_object
from gguf_export.metadata.model_keys import KeyValue, model_keys
from gguf_export.vocab import vocab_keys as vocab
from gguf_export.vocab.special_tokens import token_text
from quantize.containers.shard_index import INDEX, ShardTensor, index_shards
from quantize.containers.untrusted import quoted, read_json, refuse_foreign_links
from quantize.exceptions import CheckpointError, TokenizerError
from quantize.families import family_of
from quantize.sources.checkpoint import Checkpoint, open_checkpoint
from quantize.telling import OnProgress, Remark, silent

__all__ = ["examine"]

DOWNLOAD = "download it again"
DERIVED = ("num_key_value_heads", "head_dim")  # null or missing in healthy configs: other keys say it
LFS = b"version https://git-lfs"
CHAT_NAME = re.compile(r"instruct|chat|assistant|(^|-)it($|-)", re.I)
CHAT_TOKENS = (
    "<|im_start|>",
    "<|start_header_id|>",
    "[INST]",
    "<start_of_turn>",
    "<|user|>",
    "<|assistant|>",
)


def examine(
    path: Path, *, full: bool = False, pre: str | None = None, progress: OnProgress = silent
) -> list[Finding]:
    """Look for everything that would stop an export, or make it useless.

    Args:
        path: the folder of a Hugging Face checkpoint.
        full: read all weights instead of some rows of each matrix.
        pre: name of the pre-tokenizer, where it is not recognised.
        progress: called with the progress in tensors.

    Returns:
        What was found; a healthy checkpoint has neither errors nor warnings.
    """
    try:
        refuse_foreign_links(path)
    except CheckpointError as fault:
        return [_from(fault, "give the folder of a Hugging Face checkpoint")]
    try:
        raw = read_json(path / "config.json")
    except CheckpointError as fault:
        return [_from(fault, "copy the config.json of the model there")]
    findings = [*_config(raw), *_shards(path)]
    if any(finding.severity == "error" for finding in findings):
        return findings
    try:
        checkpoint = open_checkpoint(path)
        stored, _ = index_shards(path)
    except CheckpointError as fault:
        return [*findings, _from(fault, "")]
    findings += [info(str(path), str(remark)) for remark in checkpoint.remarks]
    findings += _types(stored)
    findings += _words(checkpoint)
    findings += _tokenizer(checkpoint, raw, pre)
    try:
        findings += check_weights(checkpoint, full=full, progress=progress)
    except CheckpointError as fault:
        findings.append(_from(fault, ""))
    return findings


def _from(fault: Exception, remedy: str) -> Finding:
    """An error that a reader raised, which names its place itself: `place: message; remedy`."""
    place, _, message = str(fault).partition(": ")
    return error(place, message, "" if ";" in message else remedy) if message else error("", place, remedy)


def _config(raw: Mapping[str, Any]) -> Iterator[Finding]:
    """Whether the family is known, and which keys are missing that it needs."""
    try:
        family = family_of(raw)
    except CheckpointError as fault:
        yield _from(fault, "")
        return
    known = set(raw) | {key for alias, key in family.aliases.items() if alias in raw}
    for key in [*family.settings, "vocab_size"]:
        if key in known or key in DERIVED:
            continue
        if family.defaults.get(key) is None:
            yield error("config.json", f"{key} is missing", "add it as the model was trained")
        else:
            yield warning(
                "config.json",
                f"{key} is missing: {quoted(family.defaults[key])}, transformers' default, would be used",
                "add it as the model was trained",
            )
    rope = raw.get("rope_parameters")
    if "rope_theta" not in raw and not (isinstance(rope, dict) and "rope_theta" in rope):
        # Llama's first configs had none, because there was only one value.
        usual = family.architectures[0] == "LlamaForCausalLM"
        text = f"rope_theta is missing: {family.rope_theta:.0f} would be used"
        yield (
            info("config.json", text)
            if usual
            else warning("config.json", text, "add it as the model was trained")
        )


def _shards(path: Path) -> Iterator[Finding]:
    """Whether every shard is there and whole."""
    try:
        stored, _ = index_shards(path)
    except CheckpointError as fault:
        first = _from(fault, DOWNLOAD)
        pointer = _is_pointer(Path(first.place))
        yield (
            error(first.place, "is a pointer of Git LFS, not the file", "git lfs pull") if pointer else first
        )
        for name in _missing_shards(path):
            if str(path / name) != first.place:
                yield error(str(path / name), f"shard is missing although {INDEX} names it", DOWNLOAD)
        return
    except OSError as fault:
        yield error(str(path), f"cannot be read: {fault.strerror}", "")
        return
    if (path / INDEX).exists():
        declared = read_json(path / INDEX).get("metadata")
        total = declared.get("total_size") if isinstance(declared, dict) else None
        there = sum(one.n_bytes for one in stored.values())
        if isinstance(total, int) and total != there:
            yield warning(
                str(path / INDEX),
                f"total_size is {total}, the shards hold {there} bytes",
                "compare with the source",
            )


def _missing_shards(path: Path) -> list[str]:
    """Shards that the index names and that are not there; names that lead out of the folder are not followed."""
    try:
        weight_map = read_json(path / INDEX).get("weight_map")
    except CheckpointError:
        return []
    names = weight_map.values() if isinstance(weight_map, dict) else ()
    plain = {name for name in names if isinstance(name, str) and re.fullmatch(r"[\w-][\w.-]{0,200}", name)}
    return sorted(name for name in plain if not (path / name).exists())


def _is_pointer(path: Path) -> bool:
    if not path.is_file():  # a pipe would be waited for
        return False
    try:
        with path.open("rb") as file:
            return file.read(len(LFS)) == LFS
    except OSError:
        return False


def _types(stored: Mapping[str, ShardTensor]) -> Iterator[Finding]:
    """A mixture of float types: rounding that somebody did to some tensors and not to others."""
    matrices = {name: one for name, one in stored.items() if len(one.shape) > 1}
    found = Counter(one.dtype for one in matrices.values())
    if len(found) < 2:
        return
    rare = found.most_common()[-1][0]
    names = [name for name, one in matrices.items() if one.dtype == rare]
    told = ", ".join(f"{n} {dtype}" for dtype, n in found.most_common())
    text = f"matrices are stored in several types ({told}), {quoted(names[0])} as {rare}"
    if all(name.endswith("gate.weight") for name in names):
        yield info("shards", text)
    else:
        yield warning("shards", text, "harmless if it was meant; otherwise merge again with one dtype")


def _words(checkpoint: Checkpoint) -> list[Finding]:
    """What the keys of a GGUF file cannot say, and what of the model card and generation_config.json is left out."""
    notes: list[Remark | str] = []
    try:
        model_keys(checkpoint, note=notes.append)
    except CheckpointError as fault:
        return [_from(fault, "")]
    return [_noted(note) for note in notes]


def _noted(note: Remark | str) -> Finding:
    place, _, message = str(note).partition(": ")
    return warning(place, message, "repair that file, or remove it")


def _tokenizer(checkpoint: Checkpoint, raw: Mapping[str, Any], pre: str | None) -> Iterator[Finding]:
    notes: list[Remark | str] = []
    path, n_vocab = checkpoint.path, checkpoint.hparams.n_vocab
    try:
        keys = vocab.vocab_keys(path, checkpoint.config, n_vocab, pre, note=notes.append)
        settings = optional_object(path / "tokenizer_config.json") or {}
        yield from _added_tokens(path)
    except TokenizerError as fault:
        yield _from(fault, "copy the tokenizer of the model there")
        return
    for note in notes:
        yield warning("tokenizer", str(note), "correct the tokenizer's files if that was not meant")
    by_name: dict[str, KeyValue] = {kv.key.removeprefix("tokenizer.ggml."): kv for kv in keys}
    tokens: list[str] = by_name["tokens"].value
    unused = sum(kind == 5 for kind in by_name["token_type"].value)
    if unused:
        yield info("tokenizer", f"{unused} of {n_vocab} rows of the embedding have no token and are padded")
    for kind in ("bos", "eos"):
        if f"{kind}_token_id" not in by_name:
            yield warning(
                "tokenizer", f"there is no {kind.upper()} token", "name it in tokenizer_config.json"
            )
        text, said = token_text(settings.get(f"{kind}_token")), raw.get(f"{kind}_token_id")
        xid = tokens.index(text) if text in tokens else None
        if type(said) is int and xid is not None and said != xid:
            yield warning(
                "config.json",
                f"{kind}_token_id is {said}, but {quoted(text)} of tokenizer_config.json is token {xid}",
                "correct the one that is wrong",
            )
    yield from _merges(by_name)
    yield from _chat_template(path, keys, tokens)


def _added_tokens(path: Path) -> Iterator[Finding]:
    """Tokens that added_tokens.json and tokenizer_config.json call differently."""
    added = optional_object(path / "added_tokens.json") or {}
    settings = optional_object(path / "tokenizer_config.json") or {}
    decoder = settings.get("added_tokens_decoder")
    for text, xid in added.items():
        other = decoder.get(str(xid)) if isinstance(decoder, dict) else None
        if isinstance(other, dict) and other.get("content") != text:
            yield warning(
                "added_tokens.json",
                f"token {quoted(xid)} is {quoted(text)}, tokenizer_config.json calls it {quoted(other.get('content'))}",
                "correct the one that is wrong",
            )


def _merges(keys: Mapping[str, KeyValue]) -> Iterator[Finding]:
    """Merges of tokens that do not exist: the tokenizer was cut, or mixed from two."""
    if "merges" not in keys:
        return
    tokens = set(keys["tokens"].value)
    lost = 0
    for merge in keys["merges"].value:
        left, _, right = merge.partition(" ")
        lost += not {left, right, left + right} <= tokens
    if lost:
        yield warning(
            "tokenizer.json",
            f"{lost} of {len(keys['merges'].value)} merges are of tokens that do not exist",
            "copy the tokenizer that belongs to the model",
        )


def _chat_template(path: Path, keys: list[KeyValue], tokens: list[str]) -> Iterator[Finding]:
    if any(kv.key.startswith("tokenizer.chat_template") for kv in keys):
        return
    wanted = CHAT_NAME.search(path.resolve().name) or set(CHAT_TOKENS) & set(tokens)
    if wanted:
        yield warning(
            "tokenizer_config.json",
            "there is no chat template, and the model seems to be one to chat with",
            "copy chat_template.jinja, or the chat_template of tokenizer_config.json, from the donor that was trained "
            "to chat",
        )
    else:
        yield info("tokenizer_config.json", "there is no chat template: applications will guess one")
