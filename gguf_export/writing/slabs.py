"""The unit of work: a slab, some rows of one expert of one tensor, is read and encoded.

Slabs are independent of each other, so they may be done in any order, by any thread or machine. Memory in flight is a
few slabs, whatever the size of the model.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from quantize import codec, compiling
from quantize.finite import refuse_non_finite
from quantize.guide import Guide
from quantize.recipes.layout import Plan, PlannedTensor
from quantize.sources.model_source import ModelSource
from quantize.telling import OnProgress
from quantize.tensors import NUMPY_TYPES, Array, QType, Rows, TensorSpec
from quantize.tracing import span

__all__ = [
    "SLAB_BYTES",
    "EncodedSlab",
    "Slab",
    "SlabUnit",
    "compile_kernels",
    "encode_slab",
    "encode_weights",
    "slabs_of",
    "slabs_of_matrix",
]

SLAB_BYTES = 4 * 2**20
"""About the source bytes of one slab. Memory of this size is reused and stays in the caches; larger slabs touch fresh
pages all the time, and smaller ones need more system calls."""


@dataclass(frozen=True)
class Slab:
    """Some rows of one expert of one tensor."""

    spec: TensorSpec
    xid: int
    rows: Rows

    @property
    def n_row(self) -> int:
        """Number of rows."""
        return self.rows[1] - self.rows[0]

    @property
    def n_bytes(self) -> int:
        """Bytes of the rows as the source stores them."""
        return self.spec.row_bytes * self.n_row

    def offset_in(self, planned: PlannedTensor) -> int:
        """Where the blocks of the slab begin, in bytes from the start of the tensor that they become part of."""
        return (self.xid * self.spec.n_row + self.rows[0]) * planned.row_bytes


@dataclass(frozen=True)
class EncodedSlab:
    """The blocks of a slab, uint8 [n_row, row bytes] for each type, and the seconds that they took."""

    slab: Slab
    blocks: Mapping[QType, Array]
    read_seconds: float
    encode_seconds: float


class SlabUnit(NamedTuple):
    """A unit of work: all that `encode_slab` takes; it can be pickled where the source can."""

    source: ModelSource
    slab: Slab
    qtypes: tuple[QType, ...]
    guide: Guide | None


def encode_slab(unit: SlabUnit) -> EncodedSlab:
    """Read a slab and encode it in each type, a pure function; blocks that keep their type are copied as they are.

    Raises:
        MoeGgufError: the weights cannot be read, or one of them is not a finite number (`NotFiniteError`).
        ImatrixError: the guide does not fit the rows.
    """
    source, slab, qtypes, guide = unit
    started = time.perf_counter()
    if all(_is_kept(slab.spec, qtype) for qtype in qtypes):
        with span("read", **_facts(slab)):
            copied = source.read_blocks(slab.spec, slab.xid, slab.rows)
        return EncodedSlab(slab, dict.fromkeys(qtypes, copied), time.perf_counter() - started, 0.0)
    with span("read", **_facts(slab)):
        weights = source.read(slab.spec, slab.xid, slab.rows)
    seconds = time.perf_counter() - started
    changed = [qtype for qtype in qtypes if not _is_kept(slab.spec, qtype)]
    encoded = encode_weights(slab, weights, changed, guide, read_seconds=seconds)
    kept = {
        qtype: source.read_blocks(slab.spec, slab.xid, slab.rows) for qtype in qtypes if qtype not in changed
    }
    return replace(encoded, blocks={**encoded.blocks, **kept})


def _facts(slab: Slab) -> dict[str, object]:
    """What a trace says of a slab."""
    return {"tensor": slab.spec.name, "expert": slab.xid, "row": slab.rows[0], "rows": slab.n_row}


def _is_kept(spec: TensorSpec, qtype: QType) -> bool:
    """Whether quantized blocks stay what they are; floats are looked at for NaN even then."""
    return qtype == spec.qtype and qtype not in NUMPY_TYPES


def encode_weights(
    slab: Slab,
    weights: Array,
    qtypes: Sequence[QType],
    guide: Guide | None,
    *,
    read_seconds: float = 0.0,
) -> EncodedSlab:
    """Encode a slab whose weights [n_row, n_per_row] were read before, in `read_seconds`; see `encode_slab`."""
    started = time.perf_counter()
    with span("check", **_facts(slab)):
        refuse_non_finite(slab.spec, slab.xid, slab.rows, weights)
    blocks = {}
    for qtype in qtypes:
        with span("encode", type=qtype.name, **_facts(slab)):
            blocks[qtype] = codec.encode(weights, qtype, guide)
    return EncodedSlab(slab, blocks, read_seconds, time.perf_counter() - started)


def slabs_of(source: ModelSource) -> Iterator[Slab]:
    """All slabs of a model, in the order in which they are read."""
    for spec in source.specs():
        for xid in range(spec.n_matrix):
            yield from slabs_of_matrix(source, spec, xid)


def slabs_of_matrix(source: ModelSource, spec: TensorSpec, xid: int) -> Iterator[Slab]:
    """The slabs of one expert's matrix, from the first row on."""
    group = source.row_step(spec)
    step = max(1, SLAB_BYTES // (group * spec.row_bytes)) * group
    for first in range(0, spec.n_row, step):
        yield Slab(spec, xid, (first, min(first + step, spec.n_row)))


def compile_kernels(plans: Iterable[Plan], weighted: Iterable[str], progress: OnProgress) -> None:
    """Compile before the first slab, so that a first run says what it is doing while it does it.

    Args:
        plans: of the files.
        weighted: names of the tensors that are encoded with importances.
        progress: told before each kernel and at the end.
    """
    names = set(weighted)
    kernels = {
        (np.dtype(NUMPY_TYPES.get(planned.spec.qtype, "<f4")), planned.qtype, planned.spec.name in names)
        for plan in plans
        for planned in plan.tensors
        if not _is_kept(planned.spec, planned.qtype)
    }
    with span("kernels"):
        scanned = [dtype for dtype, _, _ in kernels]
        compiling.compile_kernels(sorted(kernels, key=str), progress, scanned=scanned)
