"""How long an export would take, by some rows of each kind of tensor."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from pico import pico_mixtral
from places import DEMO_MODEL

from gguf_export.writing import estimate
from gguf_export.writing.estimate import encoding_seconds
from gguf_export.writing.job import prepare
from gguf_export.writing.slabs import Slab
from quantize.guide import Guide
from quantize.recipes.ftypes import ftype
from quantize.recipes.recipe import Recipe
from quantize.sources.model_source import open_stored
from quantize.tensors import Array, QType


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


def test_a_type_that_needs_importances_is_timed_with_even_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = prepare(open_stored(DEMO_MODEL), [Recipe(ftype("IQ2_XXS"))], tmp_path, only_planned=True)
    assert any("which needs importances" in remark.message for remark in job.remarks)
    guided: dict[QType, bool] = {}

    def encode_weights(_slab: Slab, _weights: Array, qtypes: list[QType], guide: Guide | None) -> None:
        guided.update(dict.fromkeys(qtypes, guide is not None))

    monkeypatch.setattr(estimate, "compile_kernels", lambda *_: None)
    monkeypatch.setattr(estimate, "encode_weights", encode_weights)
    assert encoding_seconds(job) is not None
    assert guided[QType.IQ2_XXS] and not guided[QType.Q2_K]
