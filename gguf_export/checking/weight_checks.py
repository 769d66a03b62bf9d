"""Faults of the weights of a checkpoint: damage, dead routers, identical experts.

Some rows of each matrix show most of them; all rows are read where that is asked for.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

import numpy as np

from gguf_export.checking.findings import Finding, info, warning
from gguf_export.writing.slabs import SLAB_BYTES
from quantize.decoding import to_f32
from quantize.exceptions import NotFiniteError
from quantize.families.roles import is_router
from quantize.finite import refuse_non_finite
from quantize.recipes.left_alone import allows_quantization
from quantize.sources.checkpoint import Checkpoint
from quantize.telling import OnProgress, Progress, silent
from quantize.tensors import Array, Rows, TensorSpec

__all__ = ["check_weights"]

SAMPLED = 4  # rows at the beginning, in the middle and at the end of each matrix
F16_MAX = 65504.0
K_BLOCK = 256  # weights of a super-block

Hashes = dict[int, dict[int, list[bytes]]]
"""Layer -> expert -> a hash of each of its matrices."""

MERGE = "look at the mergekit configuration, and merge again if that was not meant"
DONORS = "look at the donors of the merge"


def check_weights(
    checkpoint: Checkpoint, *, full: bool = False, progress: OnProgress = silent
) -> Iterator[Finding]:
    """Look at some rows of each matrix, or with `full` at all.

    Raises:
        CheckpointError: a shard cannot be read.
    """
    yield from _widths(checkpoint)
    hashes: Hashes = {}
    specs = checkpoint.specs()
    for done, spec in enumerate(specs):
        progress(Progress("looking at the weights", done, len(specs), "tensors"))
        for xid in range(spec.n_matrix):
            yield from _matrix(checkpoint, spec, xid, full, hashes)
        if is_router(spec) and spec.is_matrix:
            yield from _router(spec, to_f32(checkpoint.read(spec)))
    progress(Progress("looking at the weights", len(specs), len(specs), "tensors"))
    yield from _twins(hashes, full)


def _matrix(
    checkpoint: Checkpoint, spec: TensorSpec, xid: int, full: bool, hashes: Hashes
) -> Iterator[Finding]:
    """Faults of one matrix; notes its hash, where it is one of an expert."""
    digest = hashlib.blake2b(digest_size=16)
    is_zero, largest = True, 0.0
    for rows in _rows(checkpoint, spec, full):
        weights = checkpoint.read(spec, xid, rows)
        try:
            refuse_non_finite(spec, xid, rows, weights)
        except NotFiniteError as fault:
            yield Finding.of(fault)
            return
        digest.update(weights.tobytes())
        magnitude = float(np.abs(to_f32(weights)).max())
        is_zero, largest = is_zero and magnitude == 0, max(largest, magnitude)
    if is_zero and spec.name.endswith(".weight") and not is_router(spec):
        yield warning(spec.label(xid), "all zeros" if full else "all zeros, as far as was looked", DONORS)
    if largest > F16_MAX:
        yield warning(
            spec.label(xid),
            f"a weight of {largest:.3g} is beyond what F16, and the scales of quantized blocks, can hold",
            DONORS,
        )
    if spec.has_experts and spec.bid is not None:
        hashes.setdefault(spec.bid, {}).setdefault(xid, []).append(digest.digest())


def _rows(checkpoint: Checkpoint, spec: TensorSpec, full: bool) -> Iterator[Rows]:
    """The ranges of rows to look at, in multiples of `row_step`, which cost their own bytes to read and no more."""
    step = checkpoint.row_step(spec)
    if full or spec.n_row <= 3 * max(step, SAMPLED):
        size = max(1, SLAB_BYTES // (step * spec.row_bytes)) * step
        for first in range(0, spec.n_row, size):
            yield first, min(first + size, spec.n_row)
        return
    size = max(step, SAMPLED // step * step)
    for first in (0, spec.n_row // 2 // step * step, (spec.n_row - size) // step * step):
        yield first, min(first + size, spec.n_row)


def _router(spec: TensorSpec, rows: Array) -> Iterator[Finding]:
    """Faults of a router [E, D], which sends a token to the experts whose rows resemble it most."""
    if not np.isfinite(rows).all():
        return  # `_matrix` has said so
    dead = [xid for xid, row in enumerate(rows) if not row.any()]
    if len(dead) == len(rows):
        yield warning(
            spec.name, "the router is all zeros: it chooses the same experts for every token", MERGE
        )
        return
    if dead:
        yield warning(spec.name, f"the router's rows of experts {_list(dead)} are zero", MERGE)
    experts_of: dict[bytes, list[int]] = {}
    for xid, row in enumerate(rows):
        if row.any():
            experts_of.setdefault(row.tobytes(), []).append(xid)
    for xids in experts_of.values():
        if len(xids) > 1:
            yield warning(spec.name, f"the router's rows of experts {_list(xids)} are identical", MERGE)


def _twins(hashes: Hashes, full: bool) -> Iterator[Finding]:
    """Experts that are the same in all their matrices: a merge of a model with itself."""
    layers_of: dict[tuple[int, ...], list[int]] = {}
    for bid, experts in hashes.items():
        experts_of: dict[bytes, list[int]] = {}
        for xid, digests in experts.items():
            experts_of.setdefault(b"".join(digests), []).append(xid)
        for xids in experts_of.values():
            if len(xids) > 1:
                layers_of.setdefault(tuple(xids), []).append(bid)
    for twins, layers in layers_of.items():
        where = "all layers" if len(layers) == len(hashes) else f"layers {_list(layers)}"
        sampled = "" if full else ", as far as was looked"
        yield warning("experts", f"experts {_list(twins)} are identical in {where}{sampled}", MERGE)


def _widths(checkpoint: Checkpoint) -> Iterator[Finding]:
    """Matrices whose rows K types cannot hold."""
    narrow = [
        spec
        for spec in checkpoint.specs()
        if allows_quantization(spec, checkpoint.arch) and spec.n_per_row % K_BLOCK
    ]
    if narrow:
        yield info(
            narrow[0].name,
            f"{len(narrow)} tensors have rows that {K_BLOCK} does not divide ({narrow[0].n_per_row} weights): K types "
            "fall back to larger ones there",
        )


def _list(numbers: Sequence[int]) -> str:
    """`0, 2, 5`, the first eight of them."""
    shown = ", ".join(map(str, numbers[:8]))
    return f"{shown} and {len(numbers) - 8} more" if len(numbers) > 8 else shown
