"""How long an export would take, by some rows of each kind of tensor."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from pico import pico_mixtral

from gguf_export.writing import estimate
from gguf_export.writing.estimate import encoding_seconds
from gguf_export.writing.job import prepare
from quantize.recipes.ftypes import ftype
from quantize.recipes.recipe import Recipe
from quantize.sources.model_source import open_stored
from quantize.tensors import QType


def test_the_estimate_counts_what_each_kind_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a clock that tells a second for each look, the time follows from the counts alone."""
    source = open_stored(pico_mixtral(tmp_path / "pico"))
    job = prepare(source, [Recipe(ftype("Q8_0")), Recipe(ftype("Q4_0"))], tmp_path)
    n_look = 0

    def clock() -> float:
        nonlocal n_look
        n_look += 1
        return float(n_look)

    with monkeypatch.context() as patched:
        patched.setattr(time, "perf_counter", clock)
        patched.setattr(estimate, "SAMPLE", 1)  # one row
        patched.setattr(estimate, "encode_weights", lambda *_: None)
        seconds = encoding_seconds(job, jobs=2)
    encoded = [planned for plan in job.plans for planned in plan.tensors]
    rows = sum(planned.spec.n_elements / planned.spec.n_per_row for planned in encoded)
    assert seconds == pytest.approx(rows / 2)


def test_nothing_to_encode_takes_no_time(tmp_path: Path) -> None:
    source = open_stored(pico_mixtral(tmp_path / "pico"))
    job = prepare(source, [Recipe(ftype("Q8_0"))], tmp_path)
    whole = encoding_seconds(job)
    assert whole is not None and whole > 0
    assert all(planned.qtype is not QType.Q4_K for planned in job.plans[0].tensors)
