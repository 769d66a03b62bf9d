"""The way of bytes to a device: a few buffers that are used again and again, and copies that nobody waits for.

`CudaLane` is all that there is of CUDA in the reading of matrices. Its buffers are pinned, so that the card fetches
them by itself (55 GB/s on an H200, 17 from other memory), and its copies have a stream of their own. Two rules hold:
a buffer is written again only behind the copy out of it (`Buffer.sent`), and the stream that computes goes on only
behind the copies of what it uses (`receive`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from queue import SimpleQueue
from typing import Any

import torch
from torch import Tensor

from quantize.tensors import Array

__all__ = ["Buffer", "CudaLane", "Lane", "Mark"]

N_BUFFER = 16
BUFFER_BYTES = 8 << 20

Mark = torch.cuda.Event | None
"""The moment behind a copy on its stream; None where a copy is over when it returns."""


class Buffer:
    """Memory of the host, uint8 [n], and the mark of the last copy out of it."""

    def __init__(self, n_bytes: int, *, pinned: bool) -> None:
        self.tensor = torch.empty(n_bytes, dtype=torch.uint8, pin_memory=pinned)
        self.array: Array = self.tensor.numpy()
        self.sent: Mark = None


class Lane:
    """Copies from buffers to the memory of the CPU: the lane of CUDA without its streams, for any other device."""

    def __init__(self, device: str, *, n_buffer: int = N_BUFFER, n_bytes: int = BUFFER_BYTES) -> None:
        """Make buffers of `n_bytes` each; they are shared by the threads that read."""
        self.device, self.n_bytes = device, n_bytes
        self._free: SimpleQueue[Buffer] = SimpleQueue()
        for _ in range(n_buffer):
            self._free.put(self._make_buffer())

    def _make_buffer(self) -> Buffer:
        return Buffer(self.n_bytes, pinned=False)

    @contextmanager
    def buffer(self) -> Iterator[Buffer]:
        """A buffer that may be written; waits until one is free."""
        buffer = self._free.get()
        try:
            if buffer.sent is not None:
                buffer.sent.synchronize()
                buffer.sent = None
            yield buffer
        finally:
            self._free.put(buffer)

    def place(self, shape: tuple[int, int]) -> Tensor:
        """Room on the device, uint8, for what will be sent."""
        return torch.empty(shape, dtype=torch.uint8, device=self.device)

    def send(self, buffer: Buffer, to: Tensor) -> Mark:
        """Copy the first bytes of a buffer to a part of a place, uint8 [n]."""
        to.numpy()[...] = buffer.array[: len(to)]
        return None

    def receive(self, blocks: Tensor, marks: Sequence[Mark]) -> None:
        """Let what is computed from now on find in a place what was sent there."""


class CudaLane(Lane):
    """Copies from pinned buffers to a GPU, on a stream of its own."""

    def __init__(self, device: str, **sizes: Any) -> None:
        """Pin the buffers, and open the stream."""
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        super().__init__(device, **sizes)

    def _make_buffer(self) -> Buffer:
        return Buffer(self.n_bytes, pinned=True)

    def place(self, shape: tuple[int, int]) -> Tensor:
        """See `Lane`; memory of the stream that copies, so that nothing that computes may still use it."""
        with torch.cuda.stream(self._stream):
            return super().place(shape)

    def send(self, buffer: Buffer, to: Tensor) -> Mark:
        """See `Lane`; returns at once."""
        with torch.cuda.stream(self._stream):
            to.copy_(buffer.tensor[: len(to)], non_blocking=True)
            buffer.sent = self._stream.record_event()
        return buffer.sent

    def receive(self, blocks: Tensor, marks: Sequence[Mark]) -> None:
        """See `Lane`: the stream that computes waits for the copies, and keeps the memory until it is through."""
        computing = torch.cuda.current_stream(self.device)
        for mark in marks:
            if mark is not None:
                computing.wait_event(mark)
        blocks.record_stream(computing)
