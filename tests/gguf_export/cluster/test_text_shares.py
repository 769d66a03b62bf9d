"""Text passes over the nodes of a cluster: the same bytes whatever nodes there are, and whichever of them die."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from command_line import invoke
from pico import TEXT, pico_mixtral
from ray_cluster import Machines, machines

from calibration.forward.convoy import share_places
from calibration.forward.settings import ForwardSettings
from calibration.forward.timings import Timings
from calibration.importance.imatrix_shares import added, collect_shares
from calibration.judging.compare_shares import joined, score_shares
from calibration.judging.encoding_errors import ErrorSettings
from calibration.judging.matrix_errors import Errors
from calibration.judging.side_by_side import comparison_of
from calibration.text.text_settings import TextSettings, cut_text
from gguf_export.cluster.connection import connected
from gguf_export.cluster.groups import in_groups
from gguf_export.comparing.errors import errors
from gguf_export.comparing.measured import results_of
from gguf_export.comparing.models import ModelChoice
from gguf_export.comparing.results import Results
from gguf_export.comparing.run import CompareJob, compare, prepare, run
from gguf_export.comparing.texts import TextChoice
from gguf_export.planning.plan_types import plan_types
from gguf_export.writing.calibrate import calibrate
from gguf_export.writing.export import export
from gguf_export.writing.importances import write_imatrix
from quantize.exceptions import CheckpointError
from quantize.sources.model_source import open_source
from quantize.telling import OnProgress, Progress, Remark

pytestmark = pytest.mark.slow

COUNTS = (1, 2, 4)
NO_TIME = Timings()
NO_ERRORS = Errors(0.0, 0.0)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Machines]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))  # nodes shall find what is defined here
        with machines(1) as (made, _):
            yield made


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pico_mixtral(tmp_path_factory.mktemp("model") / "m")


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> TextSettings:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(TEXT * 2, encoding="utf-8")
    return TextSettings((path,), n_ctx=16)


def slowly(items: Sequence[int], *, n_active: int, progress: OnProgress) -> list[int]:
    for n_done in range(len(items)):
        progress(Progress("calculating", n_done, len(items), unit="tokens"))
        time.sleep(0.4)
    return [item * item for item in items]


def failing(items: Sequence[int], *, n_active: int, progress: OnProgress) -> list[int]:
    raise CheckpointError("m", f"is damaged at {items[0]}")


def test_imatrix_is_the_same_on_any_nodes(
    cluster: Machines, model: Path, text: TextSettings, tmp_path: Path
) -> None:
    source, settings = open_source(model), ForwardSettings()
    chunks = cut_text(source, text)
    assert chunks.n_chunk > 16
    alone = added(collect_shares(source, chunks, share_places(chunks.n_chunk), settings), chunks)
    write_imatrix(tmp_path / "alone.gguf", alone.imatrix)
    for n_node in COUNTS:
        cluster.have(n_node)
        output = tmp_path / f"{n_node}.gguf"
        collected = calibrate(model, text, output, forward=settings, ray=cluster.address)
        assert output.read_bytes() == (tmp_path / "alone.gguf").read_bytes()
        assert collected.load.n_token == chunks.n_token
        assert (collected.load.entropy == alone.load.entropy).all()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1.gguf", "2.gguf", "4.gguf", "alone.gguf"]


def compare_alone(job: CompareJob) -> Results:
    """The comparison of the shares, all in this process."""
    places = share_places(sum(text.n_chunk for text in job.texts))
    shares = score_shares(
        job.base, job.models, job.texts, places, activations="exact", settings=ForwardSettings()
    )
    found = joined(job.texts, shares)
    return figures(results_of(comparison_of(job.base, job.models, job.texts, "exact", found)))


def figures(results: Results) -> Results:
    """Without the time that it took."""
    return replace(results, timings={})


def test_compare_is_the_same_on_any_nodes(
    cluster: Machines, model: Path, text: TextSettings, tmp_path: Path
) -> None:
    """Two texts, neither of whose lengths is a number of whole shares; the second file does not exist."""
    other = tmp_path / "other.txt"
    other.write_text(TEXT[100:], encoding="utf-8")
    file = export(model, "Q8_0", tmp_path).files[0].path
    models = ModelChoice.of(model, file, types=["Q4_0"])
    job = prepare(models, TextChoice.of(str(text.paths[0]), str(other), n_ctx=32))
    assert all(chunks.n_chunk % 4 for chunks in job.texts)
    alone = compare_alone(job)
    for n_node in COUNTS:
        cluster.have(n_node)
        found = figures(results_of(run(job, ray=cluster.address).comparison))
        assert repr(found) == repr(alone)  # NaN is like NaN
    whole = results_of(compare(models, TextChoice.of(str(text.paths[0]), str(other), n_ctx=32)).comparison)
    for one, two in zip(alone.models, whole.models, strict=True):
        for here, there in zip(one.texts, two.texts, strict=True):
            assert here.figures == pytest.approx(there.figures, rel=1e-3, abs=1e-6)
            assert here.same_experts == pytest.approx(there.same_experts, abs=0.01)


def test_errors_are_the_same_on_any_nodes(cluster: Machines, model: Path, text: TextSettings) -> None:
    settings = ErrorSettings.of(["Q4_0", "Q8_0"], n_judged=20)
    reports = []
    for n_node in COUNTS[:2]:
        cluster.have(n_node)
        reports.append(errors(model, text, settings, forward=ForwardSettings(), ray=cluster.address))
    assert repr(reports[0]) == repr(reports[1])
    usual = errors(model, text, settings, forward=ForwardSettings())
    for here, there in zip(reports[0].rows, usual.rows, strict=True):
        assert replace(here, n_effective=0, errors=NO_ERRORS, plain=None) == replace(
            there, n_effective=0, errors=NO_ERRORS, plain=None
        )
        assert here.n_effective == pytest.approx(there.n_effective, rel=1e-5)
        assert here.errors.nmse == pytest.approx(there.errors.nmse, rel=0.05)  # a code may be another one
    for own, usual_routing in zip(reports[0].routing, usual.routing, strict=True):
        assert own.entropy == pytest.approx(usual_routing.entropy)


def test_a_plan_is_the_same_on_any_nodes(cluster: Machines, model: Path, text: TextSettings) -> None:
    plans = []
    for n_node in COUNTS[:2]:
        cluster.have(n_node)
        plans.append(
            plan_types(
                model, text, like="Q4_K_M", n_held_out=2, forward=ForwardSettings(), ray=cluster.address
            )
        )
    one, two = (replace(plan, timings=NO_TIME) for plan in plans)
    assert repr(one) == repr(two)
    usual = plan_types(model, text, like="Q4_K_M", n_held_out=2, forward=ForwardSettings())
    for here, there in zip(one.tensors, usual.tensors, strict=True):
        assert (here.name, here.usual_qtype) == (there.name, there.usual_qtype)
        assert here.usual_cost == pytest.approx(there.usual_cost, rel=1e-2)
    assert one.usual.predicted == pytest.approx(usual.usual.predicted, rel=1e-2)


def test_a_text_shorter_than_a_share(
    cluster: Machines, model: Path, text: TextSettings, tmp_path: Path
) -> None:
    cluster.have(2)
    words = ["--text", text.paths[0], "--ctx", 16, "--chunks", 1, "--ray", cluster.address]
    done = invoke("imatrix", model, *words, "-o", tmp_path / "m.gguf")
    assert done.exit_code == 0, done.output
    assert "16 tokens" in done.output


def test_a_node_that_dies_costs_its_group(cluster: Machines) -> None:
    cluster.have(3)
    told: list[Progress] = []
    remarks: list[Remark] = []

    def kill() -> None:
        while not any(progress.done for progress in told):
            time.sleep(0.05)
        cluster.kill()

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    with connected(cluster.address) as connection:
        squares = in_groups(connection, slowly, range(36), progress=told.append, note=remarks.append)
    killer.join(timeout=60)
    assert squares == [item * item for item in range(36)]
    assert any("were done again" in remark.message for remark in remarks), remarks


def test_an_error_comes_back_as_it_is(cluster: Machines) -> None:
    cluster.have(2)
    with connected(cluster.address) as connection, pytest.raises(CheckpointError, match="is damaged at"):
        in_groups(connection, failing, range(4))
