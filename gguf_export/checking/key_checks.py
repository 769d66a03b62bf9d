"""Whether the keys of a GGUF file say of the model what its source says."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from gguf import GGUFValueType

from gguf_export.checking.findings import Finding, error, warning
from gguf_export.checking.remedies import AGAIN, MAKE
from gguf_export.metadata.type_keys import PREFIX
from gguf_export.vocab import vocab_keys as vocab
from gguf_export.writing.job import as_copied
from quantize.containers.keys import KeyValue, Numbers, elements
from quantize.containers.untrusted import quoted
from quantize.exceptions import TokenizerError
from quantize.sources.checkpoint import Checkpoint
from quantize.sources.gguf_file import GGUFFile
from quantize.sources.model_source import ModelFile

__all__ = ["check_keys"]

VOCABULARY = ("tokenizer.ggml.tokens", "tokenizer.ggml.merges", "tokenizer.ggml.model", "tokenizer.ggml.pre")
"""Keys without which the same text becomes other tokens."""


QUANTIZED = (
    "general.quantization_version",
    "general.file_type",
    "general.alignment",
    "quantize.imatrix.",
    "split.",
    PREFIX,
)
"""Beginnings of the keys that quantizing a GGUF file sets or drops."""


def check_keys(file: GGUFFile, source: ModelFile) -> Iterator[Finding]:
    """Compare the keys with those that the source gives: of a checkpoint the architecture's and the tokenizer's, of a
    GGUF file all but those that quantizing sets.

    Raises:
        CheckpointError: the checkpoint cannot be read any more.
    """
    if source.kind == "gguf":
        yield from _check_copied(file, source)
    else:
        yield from _check_made(file, source)


def _check_copied(file: GGUFFile, source: GGUFFile) -> Iterator[Finding]:
    there = {kv.key: kv for kv in file.key_values()}
    for kv in map(as_copied, source.key_values()):
        found = there.pop(kv.key, None)
        if kv.key.startswith(QUANTIZED) or (found is not None and _is_same(found, kv)):
            continue
        message = "is missing, the source has it" if found is None else "is not that of the source"
        is_vital = kv.key in (*VOCABULARY, "general.architecture")
        if is_vital or kv.key.startswith(f"{source.keys.get('general.architecture')}."):
            yield error(kv.key, message, MAKE)
        else:
            yield warning(kv.key, message, f"{MAKE}, unless it was set")
    for key in there:
        if not key.startswith(QUANTIZED):
            yield warning(key, "is not in the source", f"{MAKE}, unless it was set")


def _is_same(one: KeyValue, other: KeyValue) -> bool:
    """Whether two keys hold the same bytes."""
    if (one.type, one.sub_type) != (other.type, other.sub_type):
        return False
    if isinstance(one.value, Numbers) and isinstance(other.value, Numbers):
        return one.value.tobytes() == other.value.tobytes()
    return bool(one.value == other.value) or (one.value != one.value and other.value != other.value)  # NaN


def _check_made(file: GGUFFile, checkpoint: Checkpoint) -> Iterator[Finding]:
    for kv in checkpoint.arch_keys():
        if not _holds(file.keys.get(kv.key), kv):
            yield error(
                kv.key,
                f"is {quoted(file.keys.get(kv.key, 'missing'))}, the checkpoint says {quoted(kv.value)}",
                AGAIN,
            )
    yield from _check_tokenizer(file, checkpoint)


def _check_tokenizer(file: GGUFFile, checkpoint: Checkpoint) -> Iterator[Finding]:
    is_byte_level = file.keys.get("tokenizer.ggml.model") == "gpt2"
    pre = file.keys.get("tokenizer.ggml.pre") if is_byte_level else None
    try:
        keys = vocab.vocab_keys(
            checkpoint.path, checkpoint.config, checkpoint.hparams.n_vocab, pre, rules=checkpoint.family.vocab
        )
    except TokenizerError as fault:
        finding = Finding.of(fault, "info", place=str(checkpoint.path))
        yield replace(finding, message=f"the vocabulary is not compared: {finding.message}")
        return
    for kv in keys:
        if _holds(file.keys.get(kv.key), kv):
            continue
        if kv.key in VOCABULARY:
            yield error(kv.key, "is not that of the checkpoint", AGAIN)
        elif kv.key not in file.keys:
            yield warning(kv.key, "is missing, the checkpoint has it", AGAIN)
        else:
            yield warning(kv.key, "is not that of the checkpoint", f"{AGAIN}, unless it was set")


def _holds(value: Any, expected: KeyValue) -> bool:
    """Whether the value of a file is the expected one; floats are compared as the file stores them, in 32 bits."""
    if expected.type == GGUFValueType.FLOAT32:
        return isinstance(value, float) and np.float32(value) == np.float32(expected.value)
    array = elements(value)
    if array is None or expected.type != GGUFValueType.ARRAY:
        return bool(value == expected.value)
    if expected.sub_type == GGUFValueType.FLOAT32:
        return list(array) == [float(np.float32(number)) for number in expected.value]
    return len(array) == len(expected.value) and list(array) == expected.value
