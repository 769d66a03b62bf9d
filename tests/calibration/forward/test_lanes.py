"""The lane of CUDA against a stand-in of its streams, whose copies are done late: the two rules must hold.

What the stand-in cannot show is that CUDA's own streams, events and pinned memory do what their names say.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch

from calibration.forward import lanes
from calibration.forward.lanes import Buffer, CudaLane, Lane

N_BYTES = 4096


class Event:
    def __init__(self, last: Future[Any]) -> None:
        self._last = last

    def synchronize(self) -> None:
        self._last.result()


class Stream:
    """Does what it is given in order, in a thread of its own, each a while later."""

    def __init__(self, _device: str = "") -> None:
        self.pool = ThreadPoolExecutor(1)
        self.last: Future[Any] = self.pool.submit(int)

    def give(self, work: Any) -> None:
        def late() -> None:
            time.sleep(0.002)
            work()

        self.last = self.pool.submit(late)

    def record_event(self) -> Event:
        return Event(self.last)

    def wait_event(self, event: Event) -> None:
        event.synchronize()


@pytest.fixture
def stream(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stream]:
    copying, plain_copy = Stream(), torch.Tensor.copy_

    def copy_(self: torch.Tensor, source: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
        if not non_blocking:
            return plain_copy(self, source)
        copying.give(lambda: plain_copy(self, source))
        return self

    monkeypatch.setattr(torch.cuda, "Stream", lambda _: copying)
    monkeypatch.setattr(torch.cuda, "stream", nullcontext)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(torch.Tensor, "copy_", copy_)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda self, chosen: None)
    monkeypatch.setattr(lanes, "Buffer", lambda n_bytes, pinned: Buffer(n_bytes, pinned=False))
    yield copying
    copying.pool.shutdown()


def carried(lane: Lane, n_part: int) -> tuple[torch.Tensor, Any]:
    """Numbers that went through the buffers of a lane in `n_part` parts, and what they should be."""
    wanted = np.random.default_rng(0).integers(0, 256, (n_part, N_BYTES), np.uint8)
    place = lane.place((n_part, N_BYTES))
    place.zero_()

    def carry(index: int) -> Any:
        with lane.buffer() as buffer:
            buffer.array[:] = wanted[index]
            return lane.send(buffer, place[index])

    with ThreadPoolExecutor(3) as pool:
        marks = list(pool.map(carry, range(n_part)))
    lane.receive(place, marks)
    return place, wanted


def test_buffers_are_written_and_places_read_only_behind_the_copies(stream: Stream) -> None:
    place, wanted = carried(CudaLane("cpu", n_buffer=2, n_bytes=N_BYTES), 40)
    assert np.array_equal(place.numpy(), wanted)


@pytest.mark.parametrize("rule", ["receive", "buffer"])
def test_the_stand_in_finds_a_rule_that_is_broken(
    stream: Stream, monkeypatch: pytest.MonkeyPatch, rule: str
) -> None:
    class Careless(CudaLane):
        def send(self, buffer: Buffer, to: torch.Tensor) -> Any:
            mark = super().send(buffer, to)
            buffer.sent = None if rule == "buffer" else mark
            return mark

        def receive(self, blocks: torch.Tensor, marks: Any) -> None:
            if rule == "buffer":
                super().receive(blocks, marks)

    place, wanted = carried(Careless("cpu", n_buffer=2, n_bytes=N_BYTES), 40)
    assert not np.array_equal(place.numpy(), wanted)


def test_a_plain_lane_is_done_at_once() -> None:
    place, wanted = carried(Lane("cpu", n_buffer=1, n_bytes=N_BYTES), 5)
    assert np.array_equal(place.numpy(), wanted)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device here")
def test_a_gpu_gets_what_was_sent() -> None:
    place, wanted = carried(CudaLane("cuda", n_buffer=2, n_bytes=N_BYTES), 400)
    assert np.array_equal(place.cpu().numpy(), wanted)
    assert Buffer(N_BYTES, pinned=True).tensor.is_pinned()
