"""Units of work for an engine, from a producer that has other work to do meanwhile."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from types import TracebackType
from typing import Generic, TypeVar

from quantize.engine import Engine

__all__ = ["Feed"]

POLL_SECONDS = 0.2
"""How long the thread waits before it looks again: a signal that ends `put` halfway may lose the word of a unit."""

Item = TypeVar("Item")
Result = TypeVar("Result")


class Feed(Generic[Item, Result]):
    """Hands the units that a producer `put`s to an engine, one by one; a context manager.

    An engine asks for a unit when it has room, but a producer such as a forward pass has one when it comes to it. A
    thread stands between the two: `put` returns at once, unless the engine has as many units as it takes.
    """

    def __init__(
        self, engine: Engine, function: Callable[[Item], Result], on_result: Callable[[Result], None]
    ) -> None:
        """Begin to wait for units.

        Args:
            engine: does the units.
            function: what is done with each.
            on_result: receives each result, in the thread of the feed.
        """
        self._engine, self._function, self._on_result = engine, function, on_result
        self._queue: queue.Queue[tuple[Item] | None] = queue.Queue(maxsize=1)
        self._is_ended = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="feed", daemon=True)
        self._thread.start()

    def put(self, item: Item) -> None:
        """Hand over a unit; waits while too many are in work.

        Raises:
            The error of an earlier unit, after which no unit is done any more.
        """
        if self._error is not None:
            raise self._error
        self._queue.put((item,))

    def close(self) -> None:
        """Wait for all units that were put.

        Raises:
            The error of one of them.
        """
        if self._thread.is_alive():
            self._queue.put(None)
            self._thread.join()
        if self._error is not None:
            raise self._error

    def __enter__(self) -> Feed[Item, Result]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
            return
        with suppress(Exception):  # the producer's own error goes on; that of a unit may be the same
            self.close()

    def _work(self) -> None:
        try:
            for _, result in self._engine.map(self._function, self._units()):
                self._on_result(result)
        except BaseException as error:
            self._error = error
            for _ in self._units():  # dropped, so that the producer does not wait for room in the queue
                pass

    def _units(self) -> Iterator[Item]:
        """What is put, until the end is."""
        while not self._is_ended:
            try:
                unit = self._queue.get(timeout=POLL_SECONDS)
            except queue.Empty:
                continue
            if unit is None:
                self._is_ended = True
            else:
                yield unit[0]
