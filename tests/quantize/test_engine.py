"""Units of work in threads: each once, few in flight, nothing begun after an error."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from quantize.engine import Threads


def test_each_item_is_worked_on_once() -> None:
    with Threads(3) as engine:
        assert sorted(engine.map(lambda item: item * item, range(50))) == [(i, i * i) for i in range(50)]
        assert dict(engine.map(str, [7])) == {7: "7"}


def test_few_units_are_in_flight() -> None:
    taken, ended = 0, 0

    def items() -> Iterator[int]:
        nonlocal taken
        for item in range(100):
            taken += 1
            yield item

    with Threads(2) as engine:
        for _ in engine.map(lambda item: item, items()):
            ended += 1
            assert taken - ended <= 2 * engine.jobs
    assert ended == 100


def test_an_error_ends_the_work() -> None:
    begun: list[int] = []
    gate = threading.Event()

    def work(item: int) -> int:
        begun.append(item)
        if item == 0:
            raise ValueError("the first unit fails")
        gate.wait(10)
        return item

    with Threads(1) as engine, pytest.raises(ValueError, match="first unit"):
        gate.set()
        list(engine.map(work, range(1000)))
    assert len(begun) <= 4


def test_closing_waits_for_the_units_in_work() -> None:
    ended: list[int] = []

    def work(item: int) -> int:
        ended.append(item)
        return item

    with Threads(2) as engine:
        units = engine.map(work, range(1000))
        next(units)
        units.close()
        n_ended = len(ended)
        assert n_ended < 1000
    assert len(ended) == n_ended
