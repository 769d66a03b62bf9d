"""Engines, which do units of work: the threads of this process, or anything else with the same `map`.

A unit is a pure function of one small item. Nothing here knows what the work is.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from types import TracebackType
from typing import Protocol, TypeVar

from quantize.tracing import span

__all__ = ["Engine", "Threads", "n_processor"]

Item = TypeVar("Item")
Result = TypeVar("Result")


def n_processor() -> int:
    """The processors that this process may use."""
    usable = getattr(os, "sched_getaffinity", None)
    return len(usable(0)) if usable is not None else os.cpu_count() or 1


class Engine(Protocol):
    """Does units of work, several at a time."""

    def map(
        self, function: Callable[[Item], Result], items: Iterable[Item]
    ) -> Generator[tuple[Item, Result], None, None]:
        """Yield (item, function(item)) in the order in which the units end.

        Items are taken when there is room for them, so memory in flight is a few units. Closing the generator, or an
        error in a unit, drops the units that have not begun and waits for those that have.
        """
        ...


class Threads:
    """An engine of threads in this process; a context manager, reusable while it is open."""

    def __init__(self, jobs: int | None = None) -> None:
        """Prepare `jobs` threads, by default one for each processor; they start with the first unit."""
        self.jobs = jobs or os.cpu_count() or 1
        self._pool = ThreadPoolExecutor(self.jobs, "worker")

    def map(
        self, function: Callable[[Item], Result], items: Iterable[Item]
    ) -> Generator[tuple[Item, Result], None, None]:
        """See `Engine.map`; at most two units per thread are waiting or in work."""
        pending: dict[Future[Result], Item] = {}
        try:
            for item in items:
                if len(pending) >= 2 * self.jobs:
                    yield from _ended(pending)
                pending[self._pool.submit(_done, function, item)] = item
            while pending:
                yield from _ended(pending)
        finally:
            # Without this an error or Ctrl-C would wait for units whose result is not wanted.
            for future in pending:
                future.cancel()
            wait(pending)

    def __enter__(self) -> Threads:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)


def _done(function: Callable[[Item], Result], item: Item) -> Result:
    with span("unit"):
        return function(item)


def _ended(pending: dict[Future[Result], Item]) -> Iterable[tuple[Item, Result]]:
    """The units that have ended, at least one, in the order in which they were begun, taken out of `pending`."""
    ended, _ = wait(pending, return_when=FIRST_COMPLETED)
    return [(pending.pop(future), future.result()) for future in list(pending) if future in ended]
