"""The reading of matrices: each when it is wanted, or ahead of that, onto the device on which they are decoded."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from calibration.decoders import decode_blocks
from calibration.forward.lanes import CudaLane, Lane, Mark
from calibration.forward.settings import ForwardSettings
from calibration.forward.stored import ALL, Matrix, Picked
from quantize.engine import n_processor
from quantize.sources.filling import fill
from quantize.sources.model_source import ModelSource
from quantize.tensors import Array, Rows, TensorSpec
from quantize.tracing import span

__all__ = ["Feeder", "Reader", "Wanted", "make_reader"]

MAX_THREADS = 8  # that read at once: the page cache gives no more bytes to more of them


class Wanted(NamedTuple):
    """A matrix that a stream of a pass will read."""

    stream: int
    source: ModelSource
    spec: TensorSpec
    xid: int

    @property
    def key(self) -> tuple[int, str, int]:
        """Tells it from the others of a pass."""
        return self.stream, self.spec.name, self.xid


class Reader:
    """Reads matrices when they are wanted, into the memory of the host."""

    def expect(self, order: Iterable[Wanted]) -> None:
        """Learn which matrices a pass will read, in which order; an earlier order is forgotten."""

    @contextmanager
    def following(self, order: Iterable[Wanted]) -> Iterator[None]:
        """Expect an order, until the work within is done or fails."""
        self.expect(order)
        try:
            yield
        finally:
            self.close()

    def read(self, stream: int, source: ModelSource, spec: TensorSpec, xid: int = 0) -> Matrix:
        """The matrix `xid` of a tensor, for a stream of the pass.

        Raises:
            CheckpointError, GGUFError, ModelChangedError: as the source's `read_blocks`.
        """
        return Matrix.read(source, spec, xid)

    def close(self) -> None:
        """Let go of what was read and is not wanted any more; a reader may be used again."""


class Feeder(Reader):
    """Reads matrices before they are wanted, in parts by several threads, and has them carried to a device.

    In flight are fewer bytes than the window and the largest matrix have together. A matrix that was not expected is
    read as `Reader` does; so is one that comes in another order, if it is not in flight by then.
    """

    def __init__(self, lane: Lane, window: int, n_thread: int | None = None) -> None:
        """Prepare to carry matrices by a lane, at most `window` bytes and one matrix ahead; nothing begins yet."""
        self._lane, self._window = lane, window
        self._n_thread = n_thread or min(MAX_THREADS, n_processor())
        self._coming: Iterator[Wanted] = iter(())
        self._flights: dict[tuple[int, str, int], _Flight] = {}
        self._n_bytes = 0
        self._pool: ThreadPoolExecutor | None = None

    def expect(self, order: Iterable[Wanted]) -> None:
        """See `Reader`; the first matrices are read from now on."""
        self.close()
        self._pool = ThreadPoolExecutor(self._n_thread, "moe-gguf-reader")
        self._coming = iter(order)
        self._go_on()

    def read(self, stream: int, source: ModelSource, spec: TensorSpec, xid: int = 0) -> Matrix:
        """See `Reader`; the bytes of a matrix that was expected lie on the device."""
        flight = self._flights.pop((stream, spec.name, xid), None)
        if flight is None:
            return super().read(stream, source, spec, xid)
        self._n_bytes -= flight.blocks.nbytes
        self._go_on()
        marks = [mark for part in flight.parts for mark in part.result()]
        self._lane.receive(flight.blocks, marks)
        return _DeviceMatrix(spec, xid, flight.blocks)

    def close(self) -> None:
        """See `Reader`; waits for the parts that are being read."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
        self._pool, self._coming = None, iter(())
        self._flights.clear()
        self._n_bytes = 0

    def _go_on(self) -> None:
        """Fill the window."""
        while self._n_bytes < self._window and (wanted := next(self._coming, None)) is not None:
            if wanted.key not in self._flights:
                self._flights[wanted.key] = self._begin(wanted)

    def _begin(self, wanted: Wanted) -> _Flight:
        assert self._pool is not None
        spec = wanted.spec
        blocks = self._lane.place((spec.n_row, spec.row_bytes))
        self._n_bytes += blocks.nbytes
        step = wanted.source.row_step(spec)
        together = max(1, self._lane.n_bytes // (step * spec.row_bytes)) * step
        parts = [
            self._pool.submit(self._carry, wanted, (first, min(first + together, spec.n_row)), blocks)
            for first in range(0, spec.n_row, together)
        ]
        return _Flight(blocks, parts)

    def _carry(self, wanted: Wanted, rows: Rows, blocks: Tensor) -> list[Mark]:
        """Read some rows and send them on their way to their place."""
        with span("read ahead", tensor=wanted.spec.name, expert=wanted.xid, first=rows[0], last=rows[1]):
            return self._send(wanted, rows, blocks)

    def _send(self, wanted: Wanted, rows: Rows, blocks: Tensor) -> list[Mark]:
        to = blocks[rows[0] : rows[1]].view(-1)
        if to.nbytes <= self._lane.n_bytes:
            with self._lane.buffer() as buffer:
                room = buffer.array[: to.nbytes].reshape(rows[1] - rows[0], -1)
                fill(wanted.source, wanted.spec, wanted.xid, rows, room)
                return [self._lane.send(buffer, to)]
        is_whole = rows == (0, wanted.spec.n_row)
        stored = wanted.source.read_blocks(wanted.spec, wanted.xid, None if is_whole else rows).reshape(-1)
        marks = []
        for start in range(0, len(stored), self._lane.n_bytes):
            part = stored[start : start + self._lane.n_bytes]
            with self._lane.buffer() as buffer:
                buffer.array[: len(part)] = part
                marks.append(self._lane.send(buffer, to[start : start + len(part)]))
        return marks


class _Flight(NamedTuple):
    """A matrix on its way to the device: its place there, uint8 [n_row, row_bytes], and its parts."""

    blocks: Tensor
    parts: list[Future[list[Mark]]]


class _DeviceMatrix(Matrix):
    """A matrix whose bytes lie on a device and are decoded there; what the host asks for is fetched."""

    def __init__(self, spec: TensorSpec, xid: int, blocks: Tensor) -> None:
        """The matrix `xid` of a tensor, from its bytes uint8 [n_row, spec.row_bytes]."""
        super().__init__(spec, xid, np.empty((0, spec.row_bytes), np.uint8))
        self._on_device: Tensor | None = blocks

    def tensor(self, device: str, dtype: torch.dtype | None = None, rows: Picked = ALL) -> Tensor:
        """See `Matrix`."""
        if self._on_device is None:
            return super().tensor(device, dtype, rows)
        return decode_blocks(self._rows(self._on_device, rows), self.spec.qtype, dtype)

    def to_host(self) -> None:
        """See `Matrix`."""
        self._blocks, self._on_device = self._stored(ALL), None

    def drop(self) -> None:
        """See `Matrix`."""
        super().drop()
        self._on_device = None

    def _stored(self, rows: Picked) -> Array:
        if self._on_device is None:
            return super()._stored(rows)
        fetched: Array = self._rows(self._on_device, rows).cpu().numpy()
        return fetched

    def _rows(self, blocks: Tensor, rows: Picked) -> Tensor:
        if isinstance(rows, slice):
            return blocks[rows]
        return blocks.index_select(0, torch.from_numpy(rows).to(blocks.device))


def make_reader(settings: ForwardSettings) -> Reader:
    """The reader that the settings of a pass ask for."""
    if not settings.n_ahead:
        return Reader()
    is_cuda = torch.device(settings.device).type == "cuda"
    return Feeder(CudaLane(settings.device) if is_cuda else Lane(settings.device), settings.n_ahead)
