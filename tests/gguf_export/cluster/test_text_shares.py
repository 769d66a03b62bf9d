"""Text passes over the nodes of a cluster: the same bytes whatever nodes there are, and whichever of them die."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from command_line import invoke
from pico import TEXT, pico_mixtral
from ray_cluster import Nodes, nodes

from calibration.forward.convoy import share_places
from calibration.forward.settings import ForwardSettings
from calibration.importance.imatrix_shares import added, collect_shares
from calibration.text.text_settings import TextSettings, cut_text
from gguf_export.cluster.connection import connected
from gguf_export.cluster.groups import in_groups
from gguf_export.writing.calibrate import calibrate
from gguf_export.writing.importances import write_imatrix
from quantize.exceptions import CheckpointError
from quantize.sources.model_source import open_source
from quantize.telling import OnProgress, Progress, Remark

pytestmark = pytest.mark.slow

COUNTS = (1, 2, 4)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Nodes]:
    with nodes() as made:
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
    cluster: Nodes, model: Path, text: TextSettings, tmp_path: Path
) -> None:
    source, settings = open_source(model), ForwardSettings()
    chunks = cut_text(source, text)
    assert chunks.n_chunk > 16
    alone = added(collect_shares(source, chunks, share_places(chunks.n_chunk), settings), chunks)
    write_imatrix(tmp_path / "alone.gguf", alone.imatrix)
    for n_node in COUNTS:
        cluster.set(n_node)
        output = tmp_path / f"{n_node}.gguf"
        collected = calibrate(model, text, output, forward=settings, ray=cluster.address)
        assert output.read_bytes() == (tmp_path / "alone.gguf").read_bytes()
        assert collected.load.n_token == chunks.n_token
        assert (collected.load.entropy == alone.load.entropy).all()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1.gguf", "2.gguf", "4.gguf", "alone.gguf"]


def test_a_text_shorter_than_a_share(cluster: Nodes, model: Path, text: TextSettings, tmp_path: Path) -> None:
    cluster.set(2)
    words = ["--text", text.paths[0], "--ctx", 16, "--chunks", 1, "--ray", cluster.address]
    done = invoke("imatrix", model, *words, "-o", tmp_path / "m.gguf")
    assert done.exit_code == 0, done.output
    assert "16 tokens" in done.output


def test_a_node_that_dies_costs_its_group(cluster: Nodes) -> None:
    cluster.set(3)
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


def test_an_error_comes_back_as_it_is(cluster: Nodes) -> None:
    cluster.set(2)
    with connected(cluster.address) as connection, pytest.raises(CheckpointError, match="is damaged at"):
        in_groups(connection, failing, range(4))
