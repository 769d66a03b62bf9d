"""Spans of several threads, in Chrome's format; nothing while nobody records."""

from __future__ import annotations

import json
import os
import threading
import time

import pytest

from quantize import tracing
from quantize.tracing import Recorder, process_start, recording, span


def events(recorder: Recorder) -> list[dict[str, object]]:
    return [event for event in json.loads(recorder.chrome_json())["traceEvents"] if event["ph"] == "X"]


def test_a_span_says_when_and_how_long() -> None:
    with recording() as recorder, span("outer", tensor="output.weight", expert=3), span("inner"):
        time.sleep(0.02)
    outer, inner = events(recorder)
    assert (outer["name"], inner["name"]) == ("outer", "inner")
    assert outer["args"] == {"tensor": "output.weight", "expert": 3}
    assert float(outer["ts"]) <= float(inner["ts"])  # type: ignore[arg-type]
    assert 0 <= float(inner["tdur"]) < 20_000 <= float(inner["dur"]) <= float(outer["dur"])  # type: ignore[arg-type]


def test_each_thread_has_a_row_with_its_name() -> None:
    def work() -> None:
        with span("work"):
            pass

    with recording() as recorder:
        work()
        thread = threading.Thread(target=work, name="helper")
        thread.start()
        thread.join()
    names = [event["args"]["name"] for event in json.loads(recorder.chrome_json())["traceEvents"][:2]]
    assert names == ["MainThread", "helper"]
    assert [event["tid"] for event in events(recorder)] == [0, 1]


def test_what_raises_has_a_span() -> None:
    with recording() as recorder, pytest.raises(ValueError, match="halfway"), span("failing"):
        raise ValueError("halfway")
    assert [event["name"] for event in events(recorder)] == ["failing"]


def test_nothing_is_kept_while_nobody_records() -> None:
    assert span("unseen", row=1) is span("unseen")
    with recording() as recorder:
        pass
    with span("late"):
        pass
    assert not events(recorder)


def test_too_many_spans_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracing, "MOST_SPANS", 2)
    with recording() as recorder:
        for _ in range(5):
            with span("one of many"):
                pass
    trace = json.loads(recorder.chrome_json())
    assert len(events(recorder)) == 2 and trace["otherData"] == {"spans that were not kept": 3}


def test_the_process_began_before_now() -> None:
    ticks = 1 / os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 0.0
    cpu, age = time.process_time(), (time.perf_counter_ns() - process_start()) / 1e9
    assert 0 <= age < 86_400
    if os.path.exists("/proc/self/stat"):  # noqa: PTH110
        assert age >= min(cpu, 0.1) - 2 * ticks
