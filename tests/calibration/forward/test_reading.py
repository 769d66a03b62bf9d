"""Reading ahead: what a pass finds is the same, in whatever order and pieces its matrices came."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pico
import pico_deep
import pico_further
import pico_oss
import pytest
import torch

from calibration.forward import order, reading
from calibration.forward.backward import forward_and_back
from calibration.forward.gradients import GradientObserver
from calibration.forward.lanes import CudaLane, Lane
from calibration.forward.reading import Feeder, Reader, Wanted, make_reader
from calibration.forward.run import forward
from calibration.forward.settings import WINDOW, ForwardSettings
from calibration.forward.streams import Given, Stream
from calibration.judging.round_trip import RoundTrip, SharedSource
from gguf_export.writing.export import prepare, run
from quantize.exceptions import CheckpointError
from quantize.recipes.ftypes import ftype
from quantize.recipes.recipe import Recipe, RecipeFacts, make_plan
from quantize.sources.checkpoint import Checkpoint
from quantize.sources.gguf_file import GGUFFile
from quantize.sources.model_source import ModelSource
from quantize.tensors import Array, TensorSpec

TOKENS = np.random.default_rng(0).integers(3, 40, (2, 12)).astype(np.int32)
AHEAD = ForwardSettings(window=20_000)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("reading") / "Pico"
    return pico.pico_mixtral(path, n_layer=1, n_expert=3, n_embd=256, n_ff=256)


@pytest.fixture(scope="module")
def checkpoint(folder: Path) -> Checkpoint:
    return Checkpoint(folder)


@pytest.fixture(scope="module")
def file(checkpoint: Checkpoint, folder: Path) -> GGUFFile:
    (made,) = run(prepare(checkpoint, [Recipe(ftype("Q4_K_M"))], folder.parent), jobs=1).files
    return GGUFFile(made.path)


@pytest.fixture(autouse=True)
def small_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a matrix comes in several pieces, and some rows in several copies."""
    monkeypatch.setattr(reading, "Lane", lambda device: Lane(device, n_buffer=2, n_bytes=3000))


def logits(sources: list[ModelSource], settings: ForwardSettings, **kwargs: Any) -> list[torch.Tensor]:
    found: list[torch.Tensor] = []
    forward(
        [Stream(source) for source in sources],
        TOKENS,
        settings=settings,
        on_logits=lambda _, of_streams: found.extend(of_stream.clone() for of_stream in of_streams),
        **kwargs,
    )
    return found


def assert_same(some: list[torch.Tensor], others: list[torch.Tensor]) -> None:
    assert len(some) == len(others) > 0
    assert all(torch.equal(one, other) for one, other in zip(some, others, strict=True))


@pytest.mark.parametrize("window", [1, 300_000, 1 << 30])
def test_a_pass_finds_the_same(checkpoint: Checkpoint, file: GGUFFile, window: int) -> None:
    plain = logits([checkpoint, file], ForwardSettings())
    before = checkpoint.bytes_read, file.bytes_read
    assert_same(plain, logits([checkpoint, file], ForwardSettings(window=window)))
    once = checkpoint.bytes_read - before[0], file.bytes_read - before[1]
    assert once == (checkpoint.n_bytes, sum(spec.n_bytes for spec in file.specs()))


FAMILIES: dict[str, Callable[[Path], Path]] = {
    "fused": partial(pico.pico_mixtral, layout="fused", n_layer=1),
    "tied": partial(pico.pico_mixtral, tied=True, n_layer=1),
    "dense": partial(pico.pico_dense, n_layer=1),
    "deepseek": pico_deep.pico_deepseek,
    "gpt_oss": partial(pico_oss.pico_oss, name="gpt-oss"),
    **{
        case.__name__: partial(pico_further.write, case=case())
        for case in (pico_further.dbrx, pico_further.qwen3next, pico_further.ernie4_5_moe)
    },
}


@pytest.mark.parametrize("name", list(FAMILIES))
def test_all_matrices_of_a_pass_are_expected(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the order in which they are read: each comes ahead, but small ones that no order names."""
    source = Checkpoint(FAMILIES[name](tmp_path / name))
    late: list[str] = []
    plain = Reader.read

    def noted(self: Reader, stream: int, source: ModelSource, spec: TensorSpec, xid: int = 0) -> Any:
        late.append(spec.name)
        return plain(self, stream, source, spec, xid)

    expected = logits([source], ForwardSettings())
    monkeypatch.setattr(Reader, "read", noted)
    assert_same(expected, logits([source], ForwardSettings(window=1)))
    specs = {spec.name: spec for spec in source.specs()}
    assert late and all(specs[name].n_row == 1 or "_inp" in name or "conv1d" in name for name in late)


def test_a_round_trip_reads_ahead_too(checkpoint: Checkpoint) -> None:
    """Its shared source is read whole, and once for both streams, whichever thread asks."""
    plan = make_plan(checkpoint.specs(), RecipeFacts.of(checkpoint.hparams), Recipe(ftype("Q8_0")), False)

    def sources() -> list[ModelSource]:
        shared = SharedSource(checkpoint, 2)
        return [shared, RoundTrip(shared, plan)]

    before = checkpoint.bytes_read
    plain = logits(sources(), ForwardSettings())
    once = checkpoint.bytes_read - before
    assert_same(plain, logits(sources(), AHEAD))
    assert checkpoint.bytes_read == before + 2 * once


def test_weights_are_handed_out_as_they_were_read(checkpoint: Checkpoint) -> None:
    def handed_out(settings: ForwardSettings) -> dict[tuple[str, int], Array]:
        found: dict[tuple[str, int], Array] = {}

        def keep(spec: TensorSpec, xid: int, weights: Array, _: Given) -> None:
            found[spec.name, xid] = weights.copy()

        forward([Stream(checkpoint)], TOKENS, settings=settings, on_weights=keep, hold_down=True)
        return found

    plain, ahead = handed_out(ForwardSettings()), handed_out(AHEAD)
    assert list(plain) == list(ahead)
    for spec in checkpoint.specs():
        for xid in range(spec.n_matrix):
            assert plain[spec.name, xid].dtype == ahead[spec.name, xid].dtype
            np.testing.assert_array_equal(plain[spec.name, xid], ahead[spec.name, xid])


def test_the_way_back_finds_the_same(checkpoint: Checkpoint) -> None:
    class Kept(GradientObserver):
        def __init__(self) -> None:
            self.found: list[torch.Tensor] = []
            self.weights: list[Array] = []

        def gradients(self, spec: Any, xid: int, tokens: Any, x: torch.Tensor, g: torch.Tensor) -> None:
            self.found.append(g.clone())

        def finished(self, matrix: Any) -> None:
            self.weights.append(matrix.picked(np.array([1, 0])))

    plain, ahead = Kept(), Kept()
    forward_and_back(checkpoint, TOKENS, [plain])
    forward_and_back(checkpoint, TOKENS, [ahead], settings=AHEAD)
    assert_same(plain.found, ahead.found)
    for one, other in zip(plain.weights, ahead.weights, strict=True):
        np.testing.assert_array_equal(one, other)


# -- the feeder by itself


def wanted(source: ModelSource) -> list[Wanted]:
    specs = [spec for spec in source.specs() if spec.is_matrix]
    return [Wanted(0, source, spec, xid) for spec in specs for xid in range(spec.n_matrix)]


def test_the_window_bounds_what_is_in_flight(checkpoint: Checkpoint) -> None:
    class Counted(Lane):
        n_placed = 0

        def place(self, shape: tuple[int, int]) -> torch.Tensor:
            self.n_placed += shape[0] * shape[1]
            return super().place(shape)

    lane = Counted("cpu", n_buffer=1, n_bytes=10_000)
    coming = wanted(checkpoint)
    sizes = [one.spec.row_bytes * one.spec.n_row for one in coming]
    window = 2 * max(sizes)
    feeder = Feeder(lane, window, n_thread=3)
    feeder.expect(coming)
    taken = 0
    for one, size in zip(coming, sizes, strict=True):
        assert lane.n_placed - taken < window + max(sizes)
        matrix = feeder.read(0, one.source, one.spec, one.xid)
        np.testing.assert_array_equal(matrix.whole(), checkpoint.read(one.spec, one.xid))
        taken += size
    assert lane.n_placed == sum(sizes)
    feeder.close()


def test_any_other_order_works(file: GGUFFile) -> None:
    feeder = Feeder(Lane("cpu", n_buffer=2, n_bytes=5000), 100_000)
    coming = wanted(file)
    feeder.expect(coming)
    for one in reversed(coming):
        matrix = feeder.read(0, one.source, one.spec, one.xid)
        found = matrix.tensor("cpu", torch.float32, slice(1, 3))
        assert torch.equal(found, Reader().read(0, *one[1:]).tensor("cpu", torch.float32, slice(1, 3)))
        matrix.to_host()
        np.testing.assert_array_equal(matrix.picked(np.array([2, 1])), file.read(one.spec, one.xid)[[2, 1]])
        matrix.drop()
        assert not len(matrix.whole())
    feeder.close()


def test_an_error_comes_where_the_matrix_is_wanted(checkpoint: Checkpoint) -> None:
    broken = next(one for one in wanted(checkpoint) if one.spec.has_experts and one.xid == 1)

    class Torn(Checkpoint):
        def fill(self, spec: TensorSpec, xid: int, *rest: Any) -> None:
            if (spec.name, xid) == (broken.spec.name, broken.xid):
                raise CheckpointError(spec.name, "cannot be read")
            super().fill(spec, xid, *rest)

    source = Torn(checkpoint.path)
    with pytest.raises(CheckpointError, match="cannot be read"):
        forward([Stream(source)], TOKENS, settings=AHEAD)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("moe-gguf-reader")]


def test_who_reads_ahead() -> None:
    assert type(make_reader(ForwardSettings())) is Reader
    assert type(make_reader(ForwardSettings("cuda", window=0))) is Reader
    assert type(make_reader(ForwardSettings(window=1))) is Feeder
    assert ForwardSettings("cuda:1").n_ahead == WINDOW and ForwardSettings().n_ahead == 0
    assert ForwardSettings(window=5).numerics == ForwardSettings().numerics  # a state may be gone on with


def test_memory_beside_hidden_states(checkpoint: Checkpoint) -> None:
    expert, ends = 3 * 256 * 256 * (2 + 4), 2 * 320 * 256 * 2
    found = order.working_bytes([Stream(checkpoint)], ForwardSettings(window=1000))
    assert found == expert + ends + 1000 + order.SPARE


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device here")
def test_a_gpu_finds_what_the_cpu_finds(
    checkpoint: Checkpoint, file: GGUFFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "CudaLane", lambda device: CudaLane(device, n_buffer=2, n_bytes=3000))
    plain = logits([checkpoint, file], ForwardSettings())
    for window in (0, 1, 300_000):
        on_gpu = logits([checkpoint, file], ForwardSettings("cuda", window=window))
        for one, other in zip(plain, on_gpu, strict=True):
            torch.testing.assert_close(one, other.cpu(), rtol=1e-4, atol=1e-4)
