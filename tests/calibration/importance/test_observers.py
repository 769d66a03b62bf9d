"""What a calibration pass keeps: llama-imatrix's sums and counts, and the load of the router."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from pico import pico_dense, pico_mixtral
from places import BENCH, GOLDEN, needs_bench

from calibration.forward.routing import Routing
from calibration.forward.settings import ForwardSettings
from calibration.forward.streams import Given, Observer
from calibration.importance.imatrix import Imatrix
from calibration.importance.imatrix_files import load_imatrix, save_imatrix
from calibration.importance.observers import RouterObserver, collect_imatrix
from calibration.text.chunks import Chunks, make_chunks, read_text
from calibration.text.tokenizer import open_tokenizer
from quantize.sources.checkpoint import open_checkpoint
from quantize.tensors import Array, TensorSpec

pytestmark = pytest.mark.numeric

EXACT = ForwardSettings()


@pytest.fixture(scope="module")
def chunks() -> Chunks:
    tokens = np.random.default_rng(3).integers(0, 320, (4, 32)).astype(np.int32)
    return Chunks(("one.txt", "two.txt"), tokens, bos_id=1)


@pytest.fixture(scope="module")
def pico(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pico_mixtral(tmp_path_factory.mktemp("pico") / "m", n_expert=6, tokenizer=False)


class Recorder(Observer):
    """Everything, in float64."""

    def __init__(self) -> None:
        self.sums: dict[tuple[str, int], np.ndarray] = {}
        self.counts: dict[tuple[str, int], int] = {}
        self.ids: dict[int, list[torch.Tensor]] = {}
        self.probs: dict[int, list[torch.Tensor]] = {}

    def inputs(
        self, stream: int, specs: Sequence[TensorSpec], xid: int, tokens: torch.Tensor, x: torch.Tensor
    ) -> None:
        for spec in specs:
            key = spec.name, xid
            self.sums[key] = self.sums.get(key, 0) + x.double().square().sum(0).numpy()
            self.counts[key] = self.counts.get(key, 0) + len(x)

    def routed(self, stream: int, bid: int, tokens: torch.Tensor, routing: Routing) -> None:
        self.ids.setdefault(bid, []).append(routing.ids.clone())
        self.probs.setdefault(bid, []).append(routing.probs.clone())


def test_sums_and_counts_of_every_matrix(pico: Path, chunks: Chunks) -> None:
    recorder = Recorder()
    source = open_checkpoint(pico)
    found = collect_imatrix(source, chunks, settings=EXACT, observers=[recorder]).imatrix
    in_layers = [s for s in source.specs() if s.name.startswith("blk.") and len(s.shape) > 1]
    assert set(found.entries) == {spec.name for spec in in_layers}
    assert found.check(source.specs()) == []
    for spec in in_layers:
        entry = found.entries[spec.name]
        assert entry.sums.dtype == np.float32
        assert entry.sums.shape == (spec.n_matrix, spec.n_per_row)
        for xid in range(spec.n_matrix):
            assert entry.counts[xid] == recorder.counts.get((spec.name, xid), 0)
            wanted = recorder.sums.get((spec.name, xid), np.zeros(spec.n_per_row))
            np.testing.assert_allclose(entry.sums[xid], wanted, rtol=1e-5)
        if spec.n_matrix > 1:
            assert entry.counts.sum() == chunks.n_token * 2  # two experts per token
        else:
            assert entry.counts.tolist() == [chunks.n_token]  # all positions, BOS included
    assert (found.datasets, found.chunk_count, found.chunk_size) == (["one.txt", "two.txt"], 4, 32)


def test_dense_models_and_the_output_matrix(chunks: Chunks, tmp_path: Path) -> None:
    source = open_checkpoint(pico_dense(tmp_path / "m", tokenizer=False))
    plain = collect_imatrix(source, chunks).imatrix
    assert {"blk.0.ffn_gate.weight", "blk.0.ffn_up.weight", "blk.1.ffn_down.weight"} < set(plain.entries)
    assert "output.weight" not in plain.entries
    more = collect_imatrix(source, chunks, process_output=True).imatrix
    assert set(more.entries) - set(plain.entries) == {"output.weight"}


def test_router_load(pico: Path, chunks: Chunks) -> None:
    recorder = Recorder()
    load = collect_imatrix(open_checkpoint(pico), chunks, settings=EXACT, observers=[recorder]).load
    assert load.n_token == chunks.n_token
    for bid in range(2):
        ids = torch.cat(recorder.ids[bid]).tolist()
        for xid in range(6):
            assert load.tokens[bid, xid] == sum(xid in pair for pair in ids)
            for other in range(6):
                assert load.pairs[bid, xid, other] == sum({xid, other} <= set(pair) for pair in ids)
        probs = torch.cat(recorder.probs[bid]).double()
        assert load.entropy[bid] == pytest.approx(float(-(probs * probs.log()).sum(-1).mean()), rel=1e-6)
        assert 0 < load.entropy[bid] < np.log(6)
    least = int(load.tokens.min())
    bid, xid = np.argwhere(load.tokens == least)[0]
    assert (bid, xid, least) in load.starved(least + 1)
    assert load.starved(least) == []


def test_layers_without_router_do_not_starve(chunks: Chunks, tmp_path: Path) -> None:
    source = open_checkpoint(pico_dense(tmp_path / "m", tokenizer=False))
    assert collect_imatrix(source, chunks).load.starved(10**9) == []
    assert RouterObserver(source.hparams).load.tokens.shape == (2, 0)


@pytest.mark.parametrize("prior", [0.0, 16.0])
def test_importances_are_complete_when_weights_are_handed_over(
    pico: Path, chunks: Chunks, prior: float
) -> None:
    """What `export --text` encodes with is what a file of the whole pass would have given, bit for bit."""
    used: dict[tuple[str, int], Array | None] = {}

    def encode(spec: TensorSpec, xid: int, weights: Array, imatrix: Imatrix, given: Given) -> None:
        assert weights.shape == (spec.n_row, spec.n_per_row)
        found = imatrix.importance(spec.name, xid)
        used[spec.name, xid] = None if found is None else found.copy()

    source = open_checkpoint(pico)
    whole = collect_imatrix(source, chunks, prior=prior, on_weights=encode, settings=EXACT).imatrix
    assert set(used) == {(spec.name, xid) for spec in source.specs() for xid in range(spec.n_matrix)}
    assert source.bytes_read == source.n_bytes
    assert sum(one is not None for one in used.values()) == 2 * (5 + 3 * 6)
    for (name, xid), at_the_time in used.items():
        afterwards = whole.importance(name, xid)
        assert (at_the_time is None) == (afterwards is None)
        if at_the_time is not None and afterwards is not None:
            assert at_the_time.tobytes() == afterwards.tobytes()


def test_a_file_of_it_weighs_the_same(pico: Path, chunks: Chunks, tmp_path: Path) -> None:
    found = collect_imatrix(open_checkpoint(pico), chunks, prior=4.0).imatrix
    save_imatrix(tmp_path / "m.gguf", found)
    back = load_imatrix(tmp_path / "m.gguf", prior=4.0)
    for name, entry in found.entries.items():
        for xid in range(len(entry.counts)):
            ours, theirs = found.importance(name, xid), back.importance(name, xid)
            assert ours is not None and theirs is not None and ours.tobytes() == theirs.tobytes()


@pytest.mark.slow
@needs_bench
def test_the_bench_gives_llama_imatrix_s_numbers() -> None:
    """Eight chunks; `scripts/bench_calibration` does the same with the whole text."""
    model = BENCH / "harmony-nano"
    chunks = make_chunks([read_text(BENCH / "texts" / "calibration.txt")], open_tokenizer(model), n_chunk=8)
    found = collect_imatrix(open_checkpoint(model), chunks, settings=EXACT).imatrix
    golden = np.load(GOLDEN / "imatrix-8-chunks.npz")  # made by make_imatrix.py beside it
    assert {f"{name}{kind}" for name in found.entries for kind in (".in_sum2", ".counts")} == set(
        golden.files
    )
    for name, entry in found.entries.items():
        counts = golden[f"{name}.counts"].ravel()
        assert np.abs(entry.counts - counts).max() < 0.005 * chunks.n_token, name  # router ties
        error = np.abs(entry.sums[:, :64] / golden[f"{name}.in_sum2"] - 1)
        assert np.median(error, axis=1).max() < 0.02, name
        assert error[counts > 1000].max() < 0.05, name  # in fewer tokens one that changed its expert shows
