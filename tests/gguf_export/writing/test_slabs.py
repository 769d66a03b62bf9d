"""The unit of work is pure: it can be sent to another process, and the blocks that come back make the same file."""

from __future__ import annotations

import itertools
import multiprocessing
import threading
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pico import pico_mixtral

from gguf_export.writing import slabs
from gguf_export.writing.export import export, prepare, run
from gguf_export.writing.feed import Feed
from gguf_export.writing.slabs import SlabUnit, encode_slab, slabs_of
from quantize import codec
from quantize.engine import Threads
from quantize.exceptions import NotFiniteError
from quantize.finite import refuse_non_finite
from quantize.guide import Guide
from quantize.recipes.ftypes import ftype
from quantize.recipes.recipe import Recipe
from quantize.sources.checkpoint import open_checkpoint
from quantize.sources.gguf_file import GGUFFile
from quantize.sources.model_source import ModelFile
from quantize.tensors import QType, TensorSpec


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pico_mixtral(tmp_path_factory.mktemp("models") / "Pico-4x1M-bf16")


def test_the_blocks_are_those_of_the_codec(model: Path) -> None:
    checkpoint = open_checkpoint(model)
    slab = next(slab for slab in slabs_of(checkpoint) if slab.spec.has_experts and slab.xid == 2)
    guide = Guide(np.linspace(1, 2, slab.spec.n_per_row, dtype=np.float32))
    encoded = encode_slab(SlabUnit(checkpoint, slab, (QType.Q4_0, QType.F16), guide))
    weights = checkpoint.read(slab.spec, 2)
    for qtype, blocks in encoded.blocks.items():
        np.testing.assert_array_equal(blocks, codec.encode(weights, qtype, guide))
    assert list(encoded.blocks) == [QType.Q4_0, QType.F16]
    assert encoded.encode_seconds > 0


class Processes:
    """An engine of processes that share nothing: units go out pickled, blocks come back pickled, the last one first."""

    def map(
        self, function: Callable[[Any], Any], items: Iterable[Any]
    ) -> Generator[tuple[Any, Any], None, None]:
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            sent = [(item, pool.submit(function, item)) for item in items]
            for item, future in reversed(sent):
                yield item, future.result()


def test_other_processes_make_the_same_files(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slabs, "SLAB_BYTES", 20000)
    here = export(model, ["Q4_K_M", "Q8_0"], tmp_path / "here")
    export(model, ["Q4_K_M", "Q8_0"], tmp_path / "there", engine=Processes())
    for file in here.files:
        assert (tmp_path / "there" / file.path.name).read_bytes() == file.path.read_bytes()


def made(source: ModelFile, ftypes: Sequence[str], folder: Path) -> dict[str, GGUFFile]:
    """The files of some types that `prepare` and `run` make of a source."""
    job = prepare(source, [Recipe(ftype(name)) for name in ftypes], folder)
    return {file.ftype: GGUFFile(file.path) for file in run(job).files}


def test_a_gguf_file_is_as_good_a_source(model: Path, tmp_path: Path) -> None:
    """Keys are copied in their order, weights are encoded from what the file stores."""
    types = ("BF16", "Q4_K_M", "Q8_0")
    direct = made(open_checkpoint(model), types, tmp_path / "direct")
    again = made(GGUFFile(direct["BF16"].path), types, tmp_path / "again")
    for name in types:
        assert again[name].path.read_bytes() == direct[name].path.read_bytes()


def test_quantized_blocks_that_keep_their_type_are_copied(model: Path, tmp_path: Path) -> None:
    (file,) = made(open_checkpoint(model), ["Q8_0"], tmp_path / "first").values()
    (again,) = made(GGUFFile(file.path), ["Q8_0"], tmp_path / "second").values()
    assert again.path.read_bytes() == file.path.read_bytes()
    slab = next(slab for slab in slabs_of(file) if slab.spec.qtype is QType.Q8_0)
    encoded = encode_slab(SlabUnit(file, slab, (QType.Q8_0, QType.Q4_0), None))
    stored = file.read_blocks(slab.spec, slab.xid, slab.rows)
    np.testing.assert_array_equal(encoded.blocks[QType.Q8_0], stored)
    decoded = file.read(slab.spec, slab.xid, slab.rows)
    np.testing.assert_array_equal(encoded.blocks[QType.Q4_0], codec.encode(decoded, QType.Q4_0))


@pytest.mark.parametrize(
    ("spec", "label"),
    [
        (TensorSpec("blk.0.ffn_up_exps.weight", (2, 8, 4), QType.F32), "blk.0.ffn_up_exps.weight, expert 1"),
        (TensorSpec("blk.0.ffn_up_exps.weight", (1, 8, 4), QType.F32), "blk.0.ffn_up_exps.weight, expert 0"),
        (TensorSpec("blk.0.attn_k_b.weight", (2, 8, 4), QType.F32), "blk.0.attn_k_b.weight, matrix 1"),
        (TensorSpec("output.weight", (8, 4), QType.F32), "output.weight"),
    ],
)
def test_a_weight_that_is_no_number_is_named(spec: TensorSpec, label: str) -> None:
    weights = np.zeros((2, 4), np.float32)
    xid = spec.n_matrix - 1
    refuse_non_finite(spec, xid, (6, 8), weights)
    weights[1, 2] = np.inf
    with pytest.raises(NotFiniteError) as caught:
        refuse_non_finite(spec, xid, (6, 8), weights)
    assert caught.value.place == label
    assert caught.value.message == "row 7, column 2 is not a finite number"


def test_a_unit_of_which_no_word_came_is_done() -> None:
    """A signal that ends `put` halfway leaves a unit in the queue, and nobody has told the thread that waits."""
    done = threading.Event()

    def work(_item: int) -> None:
        done.set()

    with Threads(1) as engine:
        feed: Feed[int, None] = Feed(engine, work, lambda _: None)
        with feed._queue.mutex:  # what `put` does, without its last step
            feed._queue.queue.append((1,))
        assert done.wait(30)
        feed.close()


def test_a_feed_does_not_keep_its_producer_waiting() -> None:
    """Units are put while the first is still in work, up to what an engine takes; then the producer waits."""
    release, done = threading.Event(), list[int]()

    def work(item: int) -> int:
        assert release.wait(300)
        return item

    with Threads(1) as engine, Feed(engine, work, done.append) as feed:

        def put_late() -> None:
            for item in range(3, 20):
                feed.put(item)

        for item in range(3):
            feed.put(item)
        late = threading.Thread(target=put_late)
        late.start()
        late.join(0.2)
        assert late.is_alive()
        assert not done
        release.set()
        late.join(300)
    assert sorted(done) == list(range(20))


def test_an_error_of_a_unit_reaches_the_producer() -> None:
    def work(item: int) -> int:
        if item == 3:
            raise NotFiniteError("x", "three")
        return item

    done: list[int] = []
    raised = pytest.raises(NotFiniteError, match="three")
    with raised, Threads(1) as engine, Feed(engine, work, done.append) as feed:
        for item in itertools.count():  # ends when the error comes
            feed.put(item)
    assert done == list(range(len(done)))
    assert len(done) <= 3
    raised = pytest.raises(NotFiniteError, match="three")
    with raised, Threads(2) as engine, Feed(engine, work, done.append) as feed:
        feed.put(3)


def test_an_error_of_the_producer_is_told_and_its_units_are_done() -> None:
    done: list[int] = []
    with pytest.raises(KeyboardInterrupt), Threads(2) as engine, Feed(engine, int, done.append) as feed:
        for item in range(5):
            feed.put(item)
        raise KeyboardInterrupt
    assert sorted(done) == list(range(5))
