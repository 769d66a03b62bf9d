"""What the weights of a checkpoint tell, of a sample of their rows or of all: damage, dead routers, experts twice."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy as np

from gguf_export.checking.findings import Finding, error, info, warning
from gguf_export.writing.slabs import SLAB_BYTES
from quantize.codec import encode, first_non_finite, row_bytes
from quantize.sources.checkpoint import Checkpoint
from quantize.telling import OnProgress, Progress, silent
from quantize.tensors import Array, QType, Rows, TensorSpec

__all__ = ["check_weights"]

SAMPLED = 4  # rows at the beginning, in the middle and at the end of each matrix
F16_MAX = 65504.0
K_BLOCK = 256  # weights of a super-block

Hashes = dict[int, dict[int, list[bytes]]]
"""Layer -> expert -> a hash of each of its matrices."""

MERGE = "look at the mergekit configuration, and merge again if that was not meant"


def check_weights(
    checkpoint: Checkpoint, *, full: bool = False, progress: OnProgress = silent
) -> list[Finding]:
    """Look at some rows of each matrix, or at all.

    Raises:
        CheckpointError: a shard cannot be read.
    """
    findings = list(_widths(checkpoint))
    hashes: Hashes = {}
    specs = checkpoint.specs()
    for done, spec in enumerate(specs):
        progress(Progress("looking at the weights", done, len(specs), "tensors"))
        for xid in range(spec.n_matrix):
            findings += _matrix(checkpoint, spec, xid, full, hashes)
        if spec.name.endswith("ffn_gate_inp.weight"):
            findings += _router(spec, _as_f32(checkpoint.read(spec)))
    progress(Progress("looking at the weights", len(specs), len(specs), "tensors"))
    return [*findings, *_twins(hashes, full)]


def _matrix(
    checkpoint: Checkpoint, spec: TensorSpec, xid: int, full: bool, hashes: Hashes
) -> Iterator[Finding]:
    expert = f"expert {xid}: " if spec.n_matrix > 1 else ""
    digest = hashlib.blake2b(digest_size=16)
    is_zero, largest = True, 0.0
    for rows in _rows(checkpoint, spec, full):
        weights = checkpoint.read(spec, xid, rows)
        bad = first_non_finite(weights)
        if bad is not None:
            row, column = divmod(bad, spec.n_per_row)
            yield error(
                spec.name,
                f"{expert}row {rows[0] + row}, column {column} is NaN or infinite",
                "download the checkpoint again, or merge again; it cannot be quantized",
            )
            return
        digest.update(weights.tobytes())
        magnitude = float(np.abs(_as_f32(weights)).max())
        is_zero, largest = is_zero and magnitude == 0, max(largest, magnitude)
    if is_zero and spec.name.endswith(".weight") and "ffn_gate_inp" not in spec.name:
        which = "all zeros" if full else "all zeros, as far as was looked"
        yield warning(spec.name, f"{expert}{which}", "look at the donors of the merge")
    if largest > F16_MAX:
        yield warning(
            spec.name,
            f"{expert}a weight of {largest:.3g} is beyond what F16, and the scales of quantized blocks, can hold",
            "look at the donors of the merge",
        )
    if spec.n_matrix > 1:
        layer = int(spec.name.split(".")[1])
        hashes.setdefault(layer, {}).setdefault(xid, []).append(digest.digest())


def _rows(checkpoint: Checkpoint, spec: TensorSpec, full: bool) -> Iterator[Rows]:
    """Ranges of rows, in multiples of what costs no more than itself to read."""
    step = checkpoint.row_step(spec)
    if full or spec.n_row <= 3 * max(step, SAMPLED):
        size = max(1, SLAB_BYTES // (step * row_bytes(spec.qtype, spec.n_per_row))) * step
        for first in range(0, spec.n_row, size):
            yield first, min(first + size, spec.n_row)
        return
    size = max(step, SAMPLED // step * step)
    for first in (0, spec.n_row // 2 // step * step, (spec.n_row - size) // step * step):
        yield first, min(first + size, spec.n_row)


def _router(spec: TensorSpec, rows: Array) -> Iterator[Finding]:
    """[E, D]: one row for each expert; a token goes to those whose rows are most like it."""
    if not np.isfinite(rows).all():
        return  # said already
    dead = [xid for xid, row in enumerate(rows) if not row.any()]
    if len(dead) == len(rows):
        yield warning(
            spec.name, "the router is all zeros: it chooses the same experts for every token", MERGE
        )
        return
    if dead:
        yield warning(spec.name, f"the router's rows of experts {_list(dead)} are zero", MERGE)
    same: dict[bytes, list[int]] = {}
    for xid, row in enumerate(rows):
        if row.any():
            same.setdefault(row.tobytes(), []).append(xid)
    for xids in same.values():
        if len(xids) > 1:
            yield warning(spec.name, f"the router's rows of experts {_list(xids)} are identical", MERGE)


def _twins(hashes: Hashes, full: bool) -> Iterator[Finding]:
    """Experts that are the same in all their matrices: a merge of a model with itself."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for layer, experts in hashes.items():
        same: dict[bytes, list[int]] = {}
        for xid, digests in experts.items():
            same.setdefault(b"".join(digests), []).append(xid)
        for xids in same.values():
            if len(xids) > 1:
                groups.setdefault(tuple(xids), []).append(layer)
    for twins, layers in groups.items():
        where = "all layers" if len(layers) == len(hashes) else f"layers {_list(layers)}"
        sampled = "" if full else ", as far as was looked"
        yield warning("experts", f"experts {_list(list(twins))} are identical in {where}{sampled}", MERGE)


def _widths(checkpoint: Checkpoint) -> Iterator[Finding]:
    narrow = [
        spec
        for spec in checkpoint.specs()
        if len(spec.shape) > 1 and spec.n_per_row % K_BLOCK and "ffn_gate_inp" not in spec.name
    ]
    if narrow:
        yield info(
            narrow[0].name,
            f"{len(narrow)} tensors have rows that {K_BLOCK} does not divide ({narrow[0].n_per_row} weights): K types "
            "fall back to larger ones there",
        )


def _as_f32(weights: Array) -> Array:
    found: Array = encode(weights, QType.F32).view(np.float32)
    return found


def _list(numbers: list[int]) -> str:
    shown = ", ".join(map(str, numbers[:8]))
    return f"{shown} and {len(numbers) - 8} more" if len(numbers) > 8 else shown
