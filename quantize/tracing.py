"""What each thread does, and when: spans of time that are kept only while somebody records.

There is one recorder for a process, not one for a call: spans are opened by threads of pools, which inherit no context
variable, and deep in loops, where a further argument would be in everyone's way. While nothing records, a span costs
one look at a module's variable.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, NamedTuple

__all__ = ["Recorder", "process_start", "recording", "span"]

MOST_SPANS = 500_000
"""Spans that are kept, some 150 MB; an export of Harmony-4x7B has a tenth of them. Later ones are counted."""

_NOTHING = nullcontext()
_recorder: Recorder | None = None


class _Event(NamedTuple):
    name: str
    thread: int
    start: int  # nanoseconds of time.perf_counter_ns
    wall: int  # nanoseconds
    cpu: int  # nanoseconds in which the thread had a processor
    facts: dict[str, Any]


class Recorder:
    """The spans of a run, of all threads."""

    def __init__(self, start: int | None = None) -> None:
        """Count time from `start`, a value of `time.perf_counter_ns`; by default from now."""
        self.start = time.perf_counter_ns() if start is None else start
        self.n_lost = 0
        """Spans beyond `MOST_SPANS`, of which nothing is kept."""

        self._events: list[_Event] = []
        self._threads: dict[int, str] = {}

    def add(self, name: str, start: int, wall: int, cpu: int, facts: dict[str, Any]) -> None:
        """Keep a span of the calling thread: its begin as `time.perf_counter_ns`, and nanoseconds."""
        if len(self._events) >= MOST_SPANS:
            self.n_lost += 1
            return
        thread = threading.get_ident()
        if thread not in self._threads:
            self._threads[thread] = threading.current_thread().name
        self._events.append(_Event(name, thread, start, wall, cpu, facts))

    def chrome_json(self) -> str:
        """The spans in Chrome's trace event format, which chrome://tracing and ui.perfetto.dev show.

        Each is a complete event ("X"): `ts` and `dur` in microseconds from the start, `tdur` those of them in which the
        thread had a processor, `args` the facts. Threads are numbered in the order in which they appeared. The format:
        "Trace Event Format", Google 2016, JSON Object Format.
        """
        events, threads = list(self._events), dict(self._threads)  # a thread may be at work still
        number = {thread: index for index, thread in enumerate(threads)}
        process = os.getpid()
        lines: list[dict[str, Any]] = [
            {"ph": "M", "name": "thread_name", "pid": process, "tid": number[thread], "args": {"name": name}}
            for thread, name in threads.items()
        ]
        lines += [
            {
                "ph": "X",
                "name": event.name,
                "pid": process,
                "tid": number[event.thread],
                "ts": (event.start - self.start) / 1e3,
                "dur": event.wall / 1e3,
                "tdur": event.cpu / 1e3,
                "args": event.facts,
            }
            for event in sorted(events, key=lambda event: event.start)
            if event.thread in number
        ]
        about = {"displayTimeUnit": "ms", "otherData": {"spans that were not kept": self.n_lost}}
        rows = ",\n".join(json.dumps(line) for line in lines)
        return f'{json.dumps(about)[:-1]}, "traceEvents": [\n{rows}\n]}}\n'


class _Span:
    """One span, from entering to leaving; what raises within it has a span, too."""

    __slots__ = ("_cpu", "_facts", "_name", "_recorder", "_start")

    def __init__(self, recorder: Recorder, name: str, facts: dict[str, Any]) -> None:
        self._recorder, self._name, self._facts = recorder, name, facts

    def __enter__(self) -> None:
        self._start, self._cpu = time.perf_counter_ns(), time.thread_time_ns()

    def __exit__(self, *_error: object) -> None:
        wall, cpu = time.perf_counter_ns() - self._start, time.thread_time_ns() - self._cpu
        self._recorder.add(self._name, self._start, wall, cpu, self._facts)


def span(name: str, **facts: Any) -> AbstractContextManager[None]:
    """The time of a block, as one span of the calling thread.

    Args:
        name: the work, in a word or two that are the same each time.
        facts: what tells this time from others, as JSON can hold it.

    >>> with recording() as recorder, span("read", tensor="output.weight"):
    ...     pass
    >>> '"name": "read"' in recorder.chrome_json()
    True
    """
    recorder = _recorder
    return _NOTHING if recorder is None else _Span(recorder, name, facts)


@contextmanager
def recording(recorder: Recorder | None = None) -> Iterator[Recorder]:
    """Record all spans that end within the block, those of other threads, too; an outer recorder gets none of them."""
    global _recorder  # noqa: PLW0603 - see the module's docstring
    before, _recorder = _recorder, Recorder() if recorder is None else recorder
    try:
        yield _recorder
    finally:
        _recorder = before


def process_start() -> int:
    """When this process began, as `time.perf_counter_ns` would have said; where the system does not tell, now.

    Source: proc(5), /proc/PID/stat, field 22, in clock ticks since the system was started.
    """
    now = time.perf_counter_ns()
    with suppress(OSError, ValueError, IndexError, AttributeError):
        fields = (
            Path("/proc/self/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
        )
        ticks = int(fields[22 - 3])
        age = time.clock_gettime_ns(time.CLOCK_BOOTTIME) - ticks * 10**9 // os.sysconf("SC_CLK_TCK")
        return now - max(0, age)
    return now
