"""Exports over a Ray cluster: the bytes of one machine, whatever joins, goes or dies on the way."""

from __future__ import annotations

import operator
import os
import random
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from command_line import check_one_line, invoke
from demo_files import made_up_imatrix
from places import DEMO_MODEL, ROOT
from ray_cluster import Machines, machines

from calibration.importance.imatrix import Imatrix
from gguf_export.cluster import engine as engine_module
from gguf_export.cluster.connection import Cluster, ray_module
from gguf_export.cluster.engine import RayEngine, this_node
from gguf_export.files import durable
from gguf_export.writing import slabs, spread
from gguf_export.writing.bundles import Bundle
from gguf_export.writing.export import ExportResult, export
from gguf_export.writing.importances import write_imatrix
from quantize.exceptions import CheckpointError, ChoiceError
from quantize.sources.checkpoint import Checkpoint, open_checkpoint
from quantize.telling import Progress, Remark

pytestmark = [
    pytest.mark.skipif(find_spec("ray") is None, reason="ray is not installed"),
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),
]
TYPES = ("Q4_K_M", "Q8_0")
SLAB_BYTES = 2**16  # so that the small model has some hundred slabs


@pytest.fixture(scope="module")
def made() -> Iterator[tuple[Machines, Cluster]]:
    with machines(1) as both:
        yield both


@pytest.fixture
def cluster(made: tuple[Machines, Cluster]) -> Machines:
    return made[0]


@pytest.fixture(autouse=True)
def many_slabs_noted_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slabs, "SLAB_BYTES", SLAB_BYTES)
    monkeypatch.setattr(durable, "SYNC_SECONDS", 0.0)
    monkeypatch.chdir(DEMO_MODEL.parent)  # the nodes run elsewhere


@pytest.fixture(scope="module")
def weighed() -> Imatrix:
    return made_up_imatrix()


@pytest.fixture(scope="module")
def whole(weighed: Imatrix, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of one machine."""
    folder = tmp_path_factory.mktemp("whole")
    export(DEMO_MODEL, TYPES, folder, imatrix=weighed)
    return files(folder)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def spread_out(
    cluster: Machines, folder: Path, weighed: Imatrix | Path, **more: Any
) -> tuple[ExportResult, list[str]]:
    notes: list[str] = []
    made = export(
        DEMO_MODEL.name,
        TYPES,
        folder,
        imatrix=weighed,
        ray=cluster.address,
        note=lambda remark: notes.append(str(remark)),
        **more,
    )
    return made, notes


@pytest.mark.parametrize("n_node", [1, 2, 4])
def test_the_bytes_are_those_of_one_machine(
    cluster: Machines, tmp_path: Path, whole: dict[str, bytes], weighed: Imatrix, n_node: int
) -> None:
    cluster.have(n_node)
    told: list[Progress] = []
    made, _ = spread_out(cluster, tmp_path, weighed, progress=told.append)
    assert files(tmp_path) == whole
    assert made.bytes_read == open_checkpoint(DEMO_MODEL).n_bytes
    assert made.seconds.read and made.seconds.encode and made.seconds.write
    assert told[-1].done == told[-1].total and len(told) > 4 * n_node


def test_nodes_that_join_get_work_and_those_that_die_cost_only_theirs(made: tuple[Machines, Cluster]) -> None:
    machines, cluster = made
    machines.have(2)
    notes: list[Remark] = []
    engine = RayEngine(cluster, note=notes.append)

    def work(item: int) -> tuple[int, str]:  # a local function is sent by value
        time.sleep(2)  # longer than a process outlives its node
        return -item, this_node()

    ended: list[tuple[int, str]] = []

    def items() -> Iterator[int]:
        """As many as it takes until the node that joins has its part; it may be slow to start."""
        end, n = time.monotonic() + 120, 0
        while n < 10 or (len({node for _, node in ended}) < 3 and time.monotonic() < end):
            yield n
            n += 1

    for item, (negated, node) in engine.map(work, items()):
        assert negated == -item
        ended.append((item, node))
        if len(ended) == 4:
            machines.kill([known.node_id for known in machines.nodes].index(node))
            machines.have(2)
    assert sorted(item for item, _ in ended) == list(range(len(ended)))
    assert len({node for _, node in ended}) >= 3
    assert engine.n_again >= 1
    assert any("done again" in str(note) for note in notes)


def test_a_unit_that_ends_its_process_ends_the_run(
    made: tuple[Machines, Cluster], monkeypatch: pytest.MonkeyPatch
) -> None:
    machines, cluster = made
    monkeypatch.setattr(engine_module, "MAX_TRIES", 3)
    machines.have(1)
    engine = RayEngine(cluster)
    with pytest.raises(ChoiceError, match="was lost 3 times"):
        list(engine.map(os._exit, [1]))
    assert list(engine.map(operator.neg, [1])) == [(1, -1)]


def test_what_is_not_wanted_is_called_off(made: tuple[Machines, Cluster]) -> None:
    machines, cluster = made
    machines.have(1)

    def work(seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:  # in steps, between which it can be called off
            time.sleep(0.05)

    started = time.monotonic()
    ended = RayEngine(cluster).map(work, [0, 100, 100])
    next(ended)
    ended.close()
    assert time.monotonic() - started < 30
    assert list(RayEngine(cluster).map(abs, [-1])) == [(-1, 1)]  # nothing stands in the way


def test_errors_keep_their_kind_and_name_the_node(made: tuple[Machines, Cluster]) -> None:
    machines, cluster = made
    machines.have(1)

    def fail(_item: int) -> None:
        raise CheckpointError("shard", "is torn", "mend it")

    with pytest.raises(CheckpointError, match=r"shard: is torn \(on ray node [0-9.]+\); mend it"):
        list(RayEngine(cluster).map(fail, [1]))


@pytest.mark.parametrize("n_kill", [3])
def test_nodes_are_killed_at_random(
    cluster: Machines, tmp_path: Path, whole: dict[str, bytes], weighed: Imatrix, n_kill: int
) -> None:
    for i in range(n_kill):
        cluster.have(3)
        timer = threading.Timer(random.uniform(0, 1.5), cluster.kill)
        timer.start()
        spread_out(cluster, tmp_path / str(i), weighed, progress=lambda _: time.sleep(0.2))
        assert files(tmp_path / str(i)) == whole
        timer.join()


def test_blocks_come_back_from_nodes_that_do_not_see_the_folder(
    cluster: Machines,
    tmp_path: Path,
    whole: dict[str, bytes],
    weighed: Imatrix,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cluster.have(2)
    original, n_made = spread._Giver.bundle, []

    def every_other(self: spread._Giver, some: Any) -> Bundle:
        made = original(self, some)
        n_made.append(1)
        if len(n_made) % 2:
            return made
        return made._replace(files={i: replace(file, inode=0) for i, file in made.files.items()})

    monkeypatch.setattr(spread._Giver, "bundle", every_other)
    _, notes = spread_out(cluster, tmp_path, weighed)
    assert files(tmp_path) == whole
    assert any("came back and were written by this machine" in note for note in notes)


def test_a_model_that_nodes_do_not_see(
    cluster: Machines, tmp_path: Path, weighed: Imatrix, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster.have(1)
    elsewhere = (Checkpoint, (tmp_path / "elsewhere", None))
    monkeypatch.setattr(Checkpoint, "__reduce__", lambda _: elsewhere)
    with pytest.raises(CheckpointError, match=r"cannot be opened here: .* all nodes see it"):
        spread_out(cluster, tmp_path / "out", weighed)
    assert not list((tmp_path / "out").iterdir())


DRIVER = """
    import sys, time
    from pathlib import Path
    from gguf_export.cli import main
    from gguf_export.commands import console
    from gguf_export.files import durable
    from gguf_export.writing import slabs

    slabs.SLAB_BYTES, durable.SYNC_SECONDS = {slab_bytes}, 0.0
    show = console.ProgressView.__call__
    def slowly(self, progress):
        if progress.stage == "encoding":
            print(progress.done, flush=True)
            time.sleep(0.2)
    console.ProgressView.__call__ = slowly
    main(sys.argv[1:])
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_driver_that_is_stopped_goes_on(
    cluster: Machines,
    tmp_path: Path,
    weighed: Imatrix,
    number: signal.Signals,
) -> None:
    cluster.have(2)
    out, script = tmp_path / "out", tmp_path / "driver.py"
    write_imatrix(tmp_path / "imatrix.gguf", weighed)
    script.write_text(textwrap.dedent(DRIVER.format(slab_bytes=SLAB_BYTES)), encoding="utf-8")
    words = ["export", DEMO_MODEL, *(word for name in TYPES for word in ("-t", name)), "-o", out]
    words += ["--imatrix", tmp_path / "imatrix.gguf", "--ray", cluster.address]
    driver = subprocess.Popen(
        [sys.executable, script, *map(str, words)], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert driver.stdout is not None
    for _ in range(2):
        assert driver.stdout.readline()
    started = time.monotonic()
    driver.send_signal(number)
    _, told = driver.communicate()
    assert time.monotonic() - started < 20
    assert not list(out.glob("*.gguf")) and len(list(out.glob("*.journal"))) == 2
    if number != signal.SIGKILL:
        assert driver.returncode == 128 + number
        assert b"the same command goes on from there" in told and b"Traceback" not in told
    made, notes = spread_out(cluster, out, tmp_path / "imatrix.gguf")
    export(DEMO_MODEL, TYPES, tmp_path / "again", imatrix=tmp_path / "imatrix.gguf")
    assert files(out) == files(tmp_path / "again")
    assert any("continued" in note for note in notes)
    assert made.bytes_read < open_checkpoint(DEMO_MODEL).n_bytes


def test_a_text_is_refused(tmp_path: Path) -> None:
    done = invoke(
        "export",
        DEMO_MODEL,
        "-t",
        "Q8_0",
        "-o",
        tmp_path,
        "--ray",
        "local",
        "--text",
        DEMO_MODEL / "README.md",
    )
    check_one_line(done, "give --imatrix in its place")


@pytest.mark.parametrize(
    ("address", "named"),
    [("nonsense", "is no address"), ("127.0.0.1:1", "cannot be reached"), ("a:b:c", "is no")],
)
def test_addresses_are_refused(
    tmp_path: Path, address: str, named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_module(), "is_initialized", lambda: False)
    done = invoke("export", DEMO_MODEL, "-t", "Q8_0", "-o", tmp_path / "out", "--ray", address)
    check_one_line(done, named)
    assert not (tmp_path / "out").exists()


def test_ray_is_an_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    done = invoke("export", DEMO_MODEL, "-t", "Q8_0", "-o", tmp_path / "out", "--ray", "local")
    check_one_line(done, 'pip install "moe-gguf[ray]", or leave --ray out')
