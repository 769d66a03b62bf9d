"""Whether a GGUF file can be trusted: its structure, its numbers, and what it was made from."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFValueType

from calibration.importance.imatrix import Imatrix
from gguf_export.checking.against import compare, is_certain
from gguf_export.checking.findings import Finding, error, info, warning
from gguf_export.checking.scales import bad_row, is_known
from gguf_export.checking.structure import check_structure
from gguf_export.metadata.model_keys import KeyValue
from gguf_export.vocab import vocab_keys as vocab
from quantize.containers.untrusted import quoted
from quantize.exceptions import GGUFError, TokenizerError
from quantize.sources.checkpoint import Checkpoint
from quantize.sources.gguf_file import GGUFFile
from quantize.telling import OnProgress, Progress, silent

__all__ = ["verify"]

SCANNED_BYTES = 16 * 2**20  # of a tensor at a time
VOCABULARY = ("tokenizer.ggml.tokens", "tokenizer.ggml.merges", "tokenizer.ggml.model", "tokenizer.ggml.pre")


def verify(
    path: Path,
    *,
    against: Checkpoint | None = None,
    exact: bool | None = None,
    imatrix: Imatrix | None = None,
    jobs: int = 1,
    progress: OnProgress = silent,
) -> list[Finding]:
    """Look for everything that can be wrong with a GGUF file.

    Args:
        path: the file, made by whomever.
        against: the checkpoint that it was made from.
        exact: the quantized tensors must be, to the byte, what llama.cpp makes of the checkpoint with `imatrix`; None:
            they are compared so where the file names no importances, and may be those of another program; False: errors
            and codes are compared, and bytes only where a type knows no importances.
        imatrix: the importances with which the file was made, None for none.
        jobs: threads that compare.
        progress: told how far it is.

    Returns:
        What was found; a healthy file has neither errors nor warnings.

    Raises:
        CheckpointError, ImatrixError: `against` or `imatrix` cannot be read, or do not go together.
    """
    try:
        file = GGUFFile(path)
    except GGUFError as fault:
        text = str(fault).removeprefix(f"{path}: ")
        return [error(str(path), text, "" if ";" in text else "give a GGUF file")]
    try:
        findings = check_structure(file)
        findings += _numbers(file, progress)
        if against is not None:
            findings += _same_keys(file, against)
            findings += compare(file, against, exact=exact, imatrix=imatrix, jobs=jobs, progress=progress)
    except GGUFError as fault:  # the file changes while it is read
        return [error(str(path), str(fault).removeprefix(f"{path}: "), "it cannot be read")]
    if against is not None and exact is not False and imatrix is None:
        findings += _unused_imatrix(file)
    return findings


def _unused_imatrix(file: GGUFFile) -> Iterator[Finding]:
    name = "quantize.imatrix.file"
    if name in file.keys and not all(is_certain(stored.spec.qtype) for stored in file.tensors.values()):
        yield info(
            name,
            f"the file was made with {quoted(file.keys[name])}: with --imatrix and that file every byte is compared, "
            "without it errors, and the codes of K types, IQ4_NL and IQ4_XS, which may miss a low bit of a scale",
        )


def _numbers(file: GGUFFile, progress: OnProgress) -> Iterator[Finding]:
    """Scales and floats that are NaN or infinite; experts in which nothing but zeros is stored."""
    total, done = sum(stored.n_bytes for stored in file.tensors.values()), 0
    for name, stored in file.tensors.items():
        spec = stored.spec
        if not is_known(spec.qtype):
            yield info(name, f"the numbers of {spec.qtype.name} cannot be checked here")
            continue
        n_matrices = stored.spec.n_elements // (spec.n_row * spec.n_per_row)
        row_bytes = stored.n_bytes // (n_matrices * spec.n_row)
        step = max(1, SCANNED_BYTES // row_bytes)
        for xid in range(n_matrices):
            expert = f"expert {xid}: " if n_matrices > 1 else ""
            is_empty = True
            for first in range(0, spec.n_row, step):
                blocks = file.read_blocks(spec, xid, (first, min(first + step, spec.n_row)))
                is_empty = is_empty and not blocks.any()
                row = bad_row(blocks, spec.qtype)
                done += blocks.nbytes
                progress(Progress("checking numbers", done, total))
                if row is not None:
                    yield error(
                        name,
                        f"{expert}row {first + row} holds a number that is NaN or infinite",
                        "fetch the file again; if it is whole, its checkpoint is damaged",
                    )
                    break
            if is_empty and spec.n_row > 1:
                yield warning(name, f"{expert}all zeros", "fetch the file again, or look at its checkpoint")


def _same_keys(file: GGUFFile, checkpoint: Checkpoint) -> Iterator[Finding]:
    """Whether the file says of the model what the checkpoint says."""
    for kv in checkpoint.arch_keys():
        if not _is_same(file.keys.get(kv.key), kv):
            yield error(
                kv.key,
                f"is {quoted(file.keys.get(kv.key, 'missing'))}, the checkpoint says {quoted(kv.value)}",
                "convert the checkpoint again",
            )
    try:
        tokenizer = vocab.vocab_keys(
            checkpoint.path,
            checkpoint.config,
            checkpoint.hparams.n_vocab,
            file.keys.get("tokenizer.ggml.pre") if file.keys.get("tokenizer.ggml.model") == "gpt2" else None,
        )
    except TokenizerError as fault:
        yield info("tokenizer.ggml.tokens", f"not compared: {fault}")
        return
    for kv in tokenizer:
        if _is_same(file.keys.get(kv.key), kv):
            continue
        if kv.key in VOCABULARY:
            yield error(kv.key, "is not that of the checkpoint", "convert the checkpoint again")
        elif kv.key not in file.keys:
            yield warning(kv.key, "is missing, the checkpoint has it", "convert the checkpoint again")
        else:
            yield warning(
                kv.key, "is not that of the checkpoint", "convert the checkpoint again, unless it was set"
            )


def _is_same(found: Any, wanted: KeyValue) -> bool:
    if wanted.type == GGUFValueType.FLOAT32:
        return isinstance(found, float) and np.float32(found) == np.float32(wanted.value)
    if wanted.type == GGUFValueType.ARRAY and wanted.sub_type == GGUFValueType.FLOAT32:
        return isinstance(found, list) and found == [float(np.float32(value)) for value in wanted.value]
    return bool(found == wanted.value)
