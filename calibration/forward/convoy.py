"""Several passes through one model side by side, each in a thread of its own, that read and decode each matrix once.

A text is cut into *shares* of a fixed number of chunks, and each share is a pass of its own. What such a pass finds
follows from the model and the share alone: torch multiplies with one thread, for sums of products are rounded otherwise
by more of them. So the shares of a text give the same, digit by digit, on one machine or on many, and whoever adds them
up in the order of the text has the same sums.

All passes ask for the same matrices in the same order, so what one was given is kept until all others have taken it,
and none goes far ahead of the last one: in memory are the matrices of a few steps, however many passes there are.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from calibration.forward.settings import ForwardSettings
from quantize.engine import n_processor
from quantize.sources.model_source import ModelSource
from quantize.sources.over import Over
from quantize.telling import OnProgress, Progress, silent
from quantize.tensors import Array, Rows, TensorSpec

__all__ = ["SHARE_CHUNKS", "Member", "in_convoy", "share_places"]

SHARE_CHUNKS = 4
"""Chunks of a share. It decides the last digits of what is summed, so it hangs on nothing that a machine has."""

WINDOW = 6
"""Steps that a pass may be ahead of the last one: to read a matrix is one, to decode it another."""

Result = TypeVar("Result")


def share_places(n_chunk: int, size: int = SHARE_CHUNKS) -> list[tuple[int, int]]:
    """The first chunk of each share of a text, and the one behind its last; the last share may be shorter.

    >>> share_places(10, 4)
    [(0, 4), (4, 8), (8, 10)]
    """
    return [(start, min(start + size, n_chunk)) for start in range(0, n_chunk, size)]


class _Abandoned(Exception):  # noqa: N818 - nobody but this module sees it
    """Another pass of the convoy has failed."""


@dataclass
class _Step:
    """One thing that all passes need at the same point of their way."""

    key: Hashable
    n_left: int
    is_made: bool = False
    result: Any = None


class _Convoy:
    """The steps on the way, and where each pass is."""

    def __init__(self, n_pass: int, n_active: int) -> None:
        self._n_pass = n_pass
        self._changed = threading.Condition()
        self._slots = threading.Semaphore(n_active)
        self._places = [0] * n_pass  # steps that each pass has asked for
        self._steps: dict[int, _Step] = {}
        self._is_abandoned = False

    def take(self, index: int, key: Hashable, make: Callable[[], Any]) -> Any:
        """The result of the next step of a pass: made by the first that asks, the same object for all."""
        with self._changed:
            place = self._places[index]
            self._places[index] += 1
            self._changed.notify_all()
            step = self._steps.get(place)
            is_mine = step is None
            if step is None:
                step = self._steps[place] = _Step(key, self._n_pass)
        if step.key != key:  # a pass that looks for the reason of an error goes its own way
            return make()
        if is_mine:
            self._wait(lambda: place - min(self._places) <= WINDOW)
            result = make()
        with self._changed:
            if is_mine:
                step.result, step.is_made = result, True
                self._changed.notify_all()
        if not is_mine:
            self._wait(lambda: step.is_made)
        with self._changed:
            result = step.result
            step.n_left -= 1
            if not step.n_left:
                del self._steps[place]
        return result

    def _wait(self, is_time: Callable[[], bool]) -> None:
        """Let another pass work until it is time."""
        with self._changed:
            if self._is_abandoned:
                raise _Abandoned
            if is_time():
                return
        self._slots.release()
        try:
            with self._changed:
                self._changed.wait_for(lambda: is_time() or self._is_abandoned)
        finally:
            self._slots.acquire()
        if self._is_abandoned:
            raise _Abandoned

    @contextlib.contextmanager
    def working(self, index: int) -> Iterator[None]:
        """The work of one pass: where it fails, all others stop at their next step."""
        with self._slots:
            try:
                yield
            except BaseException:
                self.abandon()
                raise
            finally:
                with self._changed:
                    self._places[index] = 1 << 62
                    self._changed.notify_all()

    def abandon(self) -> None:
        """Stop all passes at their next step."""
        with self._changed:
            self._is_abandoned = True
            self._changed.notify_all()


class _Seat(Over):
    """A source as one pass of a convoy reads it."""

    def __init__(self, source: ModelSource, member: Member) -> None:
        super().__init__(source)
        self.kind, self.label = source.kind, source.label
        self._member = member

    def fingerprint(self) -> str:
        """The fingerprint of the source."""
        return self._source.fingerprint()

    def row_step(self, spec: TensorSpec) -> int:
        """The step of rows that the source reads without reading anything else."""
        return self._source.row_step(spec)

    def specs(self) -> Sequence[TensorSpec]:
        """The tensors of the source."""
        return self._source.specs()

    def read(self, spec: TensorSpec, xid: int = 0, rows: Rows | None = None) -> Array:
        """See `TensorSource.read`; it is not shared."""
        return self._source.read(spec, xid, rows)

    def read_blocks(self, spec: TensorSpec, xid: int = 0, rows: Rows | None = None) -> Array:
        """See `ModelSource.read_blocks`; the bytes are those of all passes, so they must not be written into."""
        key = (id(self._source), spec.name, xid, rows)
        return self._member.take(key, lambda: self._source.read_blocks(spec, xid, rows))  # type: ignore[no-any-return]


class Member:
    """One pass of a convoy: its place in it, and the sources and settings that it must use."""

    def __init__(self, index: int, convoy: _Convoy, progress: OnProgress) -> None:
        self.index, self.progress = index, progress
        self._convoy = convoy

    def take(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """See `_Convoy.take`."""
        return self._convoy.take(self.index, key, make)

    def source(self, source: ModelSource) -> ModelSource:
        """A source as this pass reads it."""
        return _Seat(source, self)

    def settings(self, settings: ForwardSettings) -> ForwardSettings:
        """Settings as this pass uses them: nothing is read ahead, for passes take turns by what they read."""

        def once(key: Hashable, make: Callable[[], Tensor]) -> Tensor:
            return self.take(("decoded", key), make)  # type: ignore[no-any-return]

        return replace(settings, once=once, window=0)


def in_convoy(
    work: Callable[[Member], Result],
    n_pass: int,
    *,
    n_active: int | None = None,
    progress: OnProgress = silent,
) -> list[Result]:
    """Do the work of several passes side by side; the results are in their order.

    Args:
        work: one pass, which reads through the source and the settings that its member gives; all of them must read
            the same in the same order.
        n_pass: how many there are.
        n_active: how many compute at the same time, by default one for each processor.
        progress: told the sum over all passes.

    Raises:
        Whatever a pass raises, of several the first one.
    """
    convoy = _Convoy(n_pass, n_active or n_processor())
    sum_up = _Sum(n_pass, progress)

    def one(index: int) -> Result:
        torch.set_num_threads(1)  # a setting of the thread
        with convoy.working(index):
            return work(Member(index, convoy, sum_up.of(index)))

    n_thread = torch.get_num_threads()
    with ThreadPoolExecutor(max(1, n_pass)) as pool:
        try:
            futures = [pool.submit(one, index) for index in range(n_pass)]
            _raise_first(futures)
            return [future.result() for future in futures]
        finally:
            convoy.abandon()
            torch.set_num_threads(n_thread)


def _raise_first(futures: Sequence[Future[Any]]) -> None:
    """Wait for all, and raise the first error that is not about another's."""
    failures = [failure for failure in (future.exception() for future in futures) if failure is not None]
    for failure in failures:
        if not isinstance(failure, _Abandoned):
            raise failure


class _Sum:
    """The progress of several passes as one."""

    def __init__(self, n_pass: int, progress: OnProgress) -> None:
        self._told: list[Progress | None] = [None] * n_pass
        self._progress, self._lock = progress, threading.Lock()

    def of(self, index: int) -> OnProgress:
        """What one pass tells of itself."""

        def tell(told: Progress) -> None:
            with self._lock:
                self._told[index] = told
                known = [each for each in self._told if each is not None and each.stage == told.stage]
                if len(known) == len(self._told):  # before that the total is not known
                    n_done, n_all = sum(each.done for each in known), sum(each.total for each in known)
                    self._progress(replace(told, done=n_done, total=n_all))

        return tell
