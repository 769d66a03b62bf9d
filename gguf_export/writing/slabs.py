"""The unit of work: a slab, some rows of one expert of one tensor, is read, encoded and shelved.

Slabs are independent of each other, so they may come in any order, from any thread; memory in flight is a few of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import TypeVar

from calibration.importance.imatrix import Imatrix
from gguf_export.writing.sink import Sink
from quantize import codec
from quantize.exceptions import CheckpointError
from quantize.guide import Guide
from quantize.recipes.layout import PlannedTensor
from quantize.sources.checkpoint import Checkpoint
from quantize.tensors import Array, QType, Rows, TensorSpec

__all__ = [
    "SLAB_BYTES",
    "NotFiniteError",
    "Seconds",
    "Slab",
    "Worker",
    "in_window",
    "slabs_of",
    "slabs_of_matrix",
    "source_bytes",
]

T = TypeVar("T")

SLAB_BYTES = 4 * 2**20
"""Source bytes of one slab, about: memory of this size is used again and again, and stays in the caches; larger slabs
touch fresh pages all the time, smaller ones ask the system more often."""


@dataclass(frozen=True)
class Slab:
    """The unit of work: some rows of one expert of one tensor."""

    spec: TensorSpec
    xid: int
    rows: Rows


@dataclass
class Seconds:
    """Where the time of an export went; `read`, `encode` and `write` are summed over the threads."""

    wall: float = 0.0
    read: float = 0.0
    encode: float = 0.0
    write: float = 0.0

    def add(self, other: Seconds) -> None:
        """Add the times of one slab."""
        self.read += other.read
        self.encode += other.encode
        self.write += other.write


class Worker:
    """Reads, encodes and shelves one slab; called from several threads."""

    def __init__(self, checkpoint: Checkpoint, sinks: Sequence[Sink], imatrix: Imatrix | None = None) -> None:
        self._checkpoint = checkpoint
        self._imatrix = imatrix
        self._targets: dict[str, list[tuple[Sink, PlannedTensor]]] = {}
        for sink in sinks:
            for planned in sink.plan.tensors:
                self._targets.setdefault(planned.spec.name, []).append((sink, planned))

    def __call__(self, slab: Slab) -> Seconds:
        """Read, encode and shelve a slab."""
        moment = time.perf_counter()
        weights = self._checkpoint.read(slab.spec, slab.xid, slab.rows)
        seconds = time.perf_counter() - moment
        importance = self._imatrix.importance(slab.spec.name, slab.xid) if self._imatrix else None
        spent = self.shelve(slab, weights, importance)
        spent.read = seconds
        return spent

    def lacking(self, slab: Slab) -> list[tuple[Sink, PlannedTensor]]:
        """The files that do not have this slab yet, each with its tensor."""
        n_rows = slab.rows[1] - slab.rows[0]
        return [
            (sink, planned)
            for sink, planned in self._targets[slab.spec.name]
            if not sink.has(planned, _offset(slab, planned), n_rows * planned.row_bytes)
        ]

    def shelve(self, slab: Slab, weights: Array, importance: Array | None) -> Seconds:
        """Encode the weights of a slab, [rows, n_per_row] as read, for each file that lacks it.

        Raises:
            CheckpointError: a weight is not a finite number.
            OutputError: the disk is full or broken.
        """
        spent = Seconds()
        refuse_non_finite(slab.spec, slab, weights)
        encoded: dict[QType, Array] = {}
        for sink, planned in self.lacking(slab):
            moment = time.perf_counter()
            if planned.qtype not in encoded:
                encoded[planned.qtype] = codec.encode(weights, planned.qtype, Guide.of(importance))
            blocks = encoded[planned.qtype]
            spent.encode += time.perf_counter() - moment
            moment = time.perf_counter()
            sink.write(planned, _offset(slab, planned), blocks)
            spent.write += time.perf_counter() - moment
        return spent


def _offset(slab: Slab, planned: PlannedTensor) -> int:
    """Where the bytes of a slab begin in its tensor."""
    return (slab.xid * slab.spec.n_row + slab.rows[0]) * planned.row_bytes


class NotFiniteError(CheckpointError):
    """A weight is NaN or infinity: nothing that was made from this checkpoint is worth keeping."""


def refuse_non_finite(spec: TensorSpec, slab: Slab, weights: Array) -> None:
    """Stop at a NaN or infinity, as llama-quantize does.

    Raises:
        CheckpointError: names the tensor, the expert and the place.
    """
    found = codec.first_non_finite(weights)
    if found is not None:
        row, column = divmod(found, spec.n_per_row)
        expert = f", expert {slab.xid}" if len(spec.shape) == 3 else ""
        raise NotFiniteError(
            f"{spec.name}{expert}: row {slab.rows[0] + row}, column {column} is not a finite number; "
            "the checkpoint is damaged or the merge failed: fetch it or make it again"
        )


def in_window(
    worker: Callable[[Slab], T], slabs: Sequence[Slab], jobs: int
) -> Generator[tuple[Slab, T], None, None]:
    """Work on slabs with `jobs` threads; at most two slabs per thread are waiting or in work."""
    pending: dict[Future[T], Slab] = {}
    with ThreadPoolExecutor(jobs) as pool:
        try:
            for slab in slabs:
                if len(pending) >= 2 * jobs:
                    yield from _collect(pending)
                pending[pool.submit(worker, slab)] = slab
            while pending:
                yield from _collect(pending)
        finally:
            # Without this an error or Ctrl-C would wait for slabs whose result nobody wants.
            pool.shutdown(wait=True, cancel_futures=True)


def _collect(pending: dict[Future[T], Slab]) -> Iterator[tuple[Slab, T]]:
    finished, _ = wait(pending, return_when=FIRST_COMPLETED)
    for future in finished:
        yield pending.pop(future), future.result()


def slabs_of(checkpoint: Checkpoint) -> Iterator[Slab]:
    """All slabs of a checkpoint, in the order in which they are read."""
    for spec in checkpoint.specs():
        for xid in range(spec.n_expert):
            yield from slabs_of_matrix(checkpoint, spec, xid)


def slabs_of_matrix(checkpoint: Checkpoint, spec: TensorSpec, xid: int) -> Iterator[Slab]:
    """The slabs of one expert's matrix, from the first row on."""
    group = checkpoint.row_step(spec)
    step = max(1, SLAB_BYTES // (group * codec.row_bytes(spec.qtype, spec.n_per_row))) * group
    for first in range(0, spec.n_row, step):
        yield Slab(spec, xid, (first, min(first + step, spec.n_row)))


def source_bytes(slab: Slab) -> int:
    """Bytes of a slab as the checkpoint stores it."""
    return codec.row_bytes(slab.spec.qtype, slab.spec.n_per_row) * (slab.rows[1] - slab.rows[0])
