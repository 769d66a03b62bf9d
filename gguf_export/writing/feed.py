"""Units of work for an engine, from a producer that has other work to do meanwhile."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Generic, TypeVar

from quantize.engine import Engine

__all__ = ["Feed"]

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
        items = iter(self._queue.get, None)
        try:
            units = (unit[0] for unit in items)
            for _, result in self._engine.map(self._function, units):
                self._on_result(result)
        except BaseException as error:
            self._error = error
            for _ in items:  # dropped, so that the producer does not wait for room in the queue
                pass
