"""Error feedback over whole models: what each stream sees, what it gains, and passes that are stopped."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pico import pico_dense, pico_mixtral
from torch import Tensor

from calibration.feedback import run
from calibration.feedback.fitting import Aim, FeedbackSettings, Fitted
from calibration.feedback.moments import Moments, Visit
from calibration.feedback.run import FedBack, FeedbackText, feed_back
from calibration.feedback.two_streams import FeedbackPass
from calibration.forward.saved_state import PassState
from calibration.forward.settings import ForwardSettings
from calibration.importance.observers import Collected, collect_imatrix
from calibration.text.chunks import Chunks
from quantize.codec import decode, encode
from quantize.exceptions import TextError
from quantize.sources.checkpoint import Checkpoint, open_checkpoint
from quantize.tensors import Array, QType, Rows, TensorSpec

pytestmark = pytest.mark.numeric

N_CHUNK, N_CTX, N_VOCAB = 8, 64, 320
EXACT = ForwardSettings()
ONE = FeedbackSettings(rounds=1, dampings=(0.1,))
PLAIN = FeedbackSettings(dampings=())
WIDE: dict[str, Any] = {"n_embd": 256, "n_ff": 256, "tokenizer": False, "n_shards": 1}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Any:
    """Small products are quicker so, and sums have one order."""
    n_thread = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n_thread)


@pytest.fixture(scope="module")
def chunks() -> Chunks:
    tokens = np.random.default_rng(5).integers(0, N_VOCAB, (N_CHUNK, N_CTX)).astype(np.int32)
    return Chunks(("text",), tokens, None)


@pytest.fixture(scope="module")
def mixtral(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return open_checkpoint(pico_mixtral(tmp_path_factory.mktemp("m") / "m", n_expert=3, **WIDE))


@dataclass
class Made:
    """What a pass gave away, and where its streams stand at the end."""

    blocks: dict[tuple[str, int], Array] = field(default_factory=dict)
    streams: list[Any] = field(default_factory=list)
    found: FedBack | None = None

    def take(self, aim: Aim, fitted: Fitted) -> None:
        assert (aim.spec.name, aim.xid) not in self.blocks
        self.blocks[aim.spec.name, aim.xid] = fitted.blocks

    @property
    def lost(self) -> float:
        """The mean square of what the hidden states of the quantized stream lack at the end."""
        original, own = (state.hidden for state in self.streams)
        return float((original - own).square().mean())


def types_of(source: Checkpoint, qtype: QType) -> dict[str, QType]:
    return {
        spec.name: qtype
        for spec in source.specs()
        if spec.is_matrix and "ffn_gate_inp" not in spec.name and "norm" not in spec.name
    }


def made(
    source: Checkpoint,
    chunks: Chunks,
    settings: FeedbackSettings = ONE,
    qtype: QType = QType.Q4_K,
    into: Made | None = None,
    **options: Any,
) -> Made:
    result = Made() if into is None else into

    class Spied(FeedbackPass):
        def __init__(self, pair: Any) -> None:
            super().__init__(pair)
            result.streams = [self.original, self.own]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "FeedbackPass", Spied)
        text = FeedbackText.of(chunks, settings)
        forward = options.pop("forward", EXACT)
        types = types_of(source, qtype)
        result.found = feed_back(source, text, types, result.take, forward=forward, jobs=2, **options)
    return result


@pytest.fixture(scope="module")
def whole(mixtral: Checkpoint, chunks: Chunks) -> Made:
    return made(mixtral, chunks)


@pytest.fixture(scope="module")
def calibrated(mixtral: Checkpoint, chunks: Chunks) -> Collected:
    return collect_imatrix(mixtral, FeedbackText.of(chunks, ONE).seen, settings=EXACT)


def found(one: Made) -> FedBack:
    assert one.found is not None
    return one.found


def assert_same_importances(one: FedBack, collected: Collected) -> None:
    assert one.imatrix.entries.keys() == collected.imatrix.entries.keys()
    for name, entry in collected.imatrix.entries.items():
        assert np.array_equal(one.imatrix.entries[name].counts, entry.counts)
        np.testing.assert_allclose(one.imatrix.entries[name].sums, entry.sums, rtol=1e-4)
    for figures in ("tokens", "pairs"):
        assert np.array_equal(getattr(one.load, figures), getattr(collected.load, figures))


def test_the_original_stream_is_that_of_a_calibration(whole: Made, calibrated: Collected) -> None:
    assert_same_importances(found(whole), calibrated)
    assert found(whole).imatrix.chunk_count == 7  # all but the one that judges
    assert found(whole).timings.n_token == 7 * N_CTX


def test_every_matrix_is_encoded_once(whole: Made, mixtral: Checkpoint) -> None:
    types = types_of(mixtral, QType.Q4_K)
    wanted = {
        (spec.name, xid) for spec in mixtral.specs() if spec.name in types for xid in range(spec.n_matrix)
    }
    assert whole.blocks.keys() == wanted
    assert {(fit.name, fit.xid) for fit in found(whole).fits} == wanted and len(found(whole).fits) == len(
        wanted
    )
    for spec in mixtral.specs():
        for xid in range(spec.n_matrix if spec.name in types else 0):
            blocks = whole.blocks[spec.name, xid]
            assert blocks.shape == (spec.n_row, spec.n_per_row // 256 * 144) and blocks.dtype == np.uint8
    counts = {(fit.name, fit.xid): (fit.n_token, fit.n_held_out) for fit in found(whole).fits}
    assert counts["blk.0.attn_q.weight", 0] == (6 * N_CTX, 1 * N_CTX)
    experts = [counts["blk.1.ffn_down_exps.weight", xid] for xid in range(3)]
    assert np.sum(experts, axis=0).tolist() == [2 * 6 * N_CTX, 2 * N_CTX]  # two experts a token


def test_less_is_lost_than_plainly(
    whole: Made, mixtral: Checkpoint, chunks: Chunks, calibrated: Collected
) -> None:
    plain = made(mixtral, chunks, PLAIN)
    assert whole.lost < 0.8 * plain.lost
    for fit in found(plain).fits:
        spec = next(spec for spec in mixtral.specs() if spec.name == fit.name)
        if fit.name == "token_embd.weight":
            continue
        assert (fit.damping, fit.reason) == (None, "held out")
        guide = None if fit.name == "output.weight" else calibrated.imatrix.guide(fit.name, fit.xid)
        usual = encode(mixtral.read(spec, fit.xid), QType.Q4_K, guide)
        assert (plain.blocks[fit.name, fit.xid] != usual).mean() < 0.001


def test_matrices_that_are_read_ahead_become_the_same_blocks(mixtral: Checkpoint, chunks: Chunks) -> None:
    plain = made(mixtral, chunks, PLAIN)
    ahead = made(mixtral, chunks, PLAIN, forward=replace(EXACT, window=30_000))
    assert plain.blocks.keys() == ahead.blocks.keys()
    assert all(np.array_equal(blocks, ahead.blocks[key]) for key, blocks in plain.blocks.items())


class Decoded(Checkpoint):
    """The same model with the weights that blocks stand for."""

    blocks: Mapping[tuple[str, int], Array]

    def specs(self) -> list[TensorSpec]:
        return [
            replace(spec, qtype=QType.F32) if (spec.name, 0) in self.blocks else spec
            for spec in super().specs()
        ]

    def read_blocks(self, spec: TensorSpec, xid: int = 0, rows: Rows | None = None) -> Array:
        blocks = self.blocks.get((spec.name, xid))
        if blocks is None:
            return super().read_blocks(spec, xid, rows)
        first, last = rows or (0, spec.n_row)
        return decode(np.ascontiguousarray(blocks[first:last]), QType.Q4_K, spec.n_per_row).view(np.uint8)


def test_the_quantized_stream_goes_by_what_the_blocks_stand_for(
    whole: Made, mixtral: Checkpoint, chunks: Chunks
) -> None:
    decoded = Decoded(mixtral.path)
    decoded.blocks = whole.blocks
    again = made(decoded, chunks, PLAIN, QType.F32)
    assert again.blocks == {}
    torch.testing.assert_close(whole.streams[1].hidden, again.streams[0].hidden, rtol=1e-3, atol=1e-3)


MODELS: dict[str, Any] = {
    "mixtral, tied": lambda path: pico_mixtral(path, n_expert=2, tied=True, n_layer=1, **WIDE),
    "dense": lambda path: pico_dense(path, n_layer=1, **WIDE),
    "dense with biases, tied": lambda path: pico_dense(
        path,
        architecture="LlamaForCausalLM",
        biases=True,
        tied=True,
        n_head=8,
        n_head_kv=2,
        n_layer=1,
        **WIDE,
    ),
    "wide heads": lambda path: pico_dense(path, n_head=4, n_head_kv=1, head_dim=128, n_layer=1, **WIDE),
}


@pytest.mark.parametrize("name", MODELS)
def test_other_models(name: str, chunks: Chunks, tmp_path: Path) -> None:
    source = open_checkpoint(MODELS[name](tmp_path / "m"))
    fed_back, plain = (made(source, chunks, settings, QType.Q3_K) for settings in (ONE, PLAIN))
    assert fed_back.lost < plain.lost
    names = {fit.name for fit in found(fed_back).fits}
    is_tied = "tied" in name
    assert ("output.weight" in names) == ("token_embd.weight" in names) == (not is_tied)
    assert_same_importances(
        found(fed_back), collect_imatrix(source, FeedbackText.of(chunks, ONE).seen, settings=EXACT)
    )


def test_experts_without_tokens_are_encoded_plainly(mixtral: Checkpoint, chunks: Chunks) -> None:
    few = Chunks(chunks.names, chunks.tokens[:3, :40], None)  # 40 tokens to fit, 40 to choose, 40 to judge
    one = made(mixtral, few)
    for fit in found(one).fits:
        if fit.name != "token_embd.weight":
            assert (fit.damping, fit.reason) == (None, "few tokens") and np.isnan(fit.ratio)


def test_a_prior_draws_experts_to_all_tokens_of_the_layer(mixtral: Checkpoint, chunks: Chunks) -> None:
    """Other tokens of the layer count together as many as it says, at the matrices of experts alone."""
    weights: list[Tensor] = []
    original = Moments.add

    def add(self: Moments, visit: Visit) -> None:
        if visit.weights is not None:
            weights.append(visit.weights)
        original(self, visit)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Moments, "add", add)
        made(mixtral, chunks, FeedbackSettings(rounds=0, dampings=ONE.dampings, prior=100))
    alike = [of_visit for of_visit in weights if (of_visit == of_visit[0]).all()]
    assert (
        len(alike) == 2 * 3 * 3
    )  # of each layer each expert's three matrices; a token's own weight is its gradient's
    for of_visit in alike:
        assert float(of_visit.sum()) == pytest.approx(100)


class Memory:
    """Keeps the last state of a pass (a `Keeper`)."""

    def __init__(self) -> None:
        self.content = b""
        self.n_kept = 0

    def recall(self, state: PassState) -> None:
        if self.content:
            with zipfile.ZipFile(io.BytesIO(self.content)) as archive:
                state.read(archive)

    def keep(self, state: PassState) -> None:
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w") as archive:
            state.write(archive)
        self.content, self.n_kept = file.getvalue(), self.n_kept + 1


class StoppedError(Exception):
    """Stands for whatever ends a run."""


@pytest.mark.parametrize("place", ["feed_forward", "output"])
def test_a_pass_goes_on_behind_a_layer(
    whole: Made, mixtral: Checkpoint, chunks: Chunks, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*arguments: Any) -> None:
        if arguments[-1] != 0:
            raise StoppedError
        original(*arguments)

    original = getattr(FeedbackPass, place)
    keeper = Memory()
    first = Made()
    with monkeypatch.context() as patch, pytest.raises(StoppedError):
        patch.setattr(FeedbackPass, place, stop)
        made(mixtral, chunks, into=first, keeper=keeper)
    n_done = 2 if place == "output" else 1
    assert keeper.n_kept == n_done
    second = made(mixtral, chunks, keeper=keeper)
    assert all(int(name.split(".")[1]) >= n_done for name, _ in second.blocks if name.startswith("blk."))
    assert ("token_embd.weight", 0) not in second.blocks
    both = first.blocks | second.blocks
    assert both.keys() == whole.blocks.keys()
    assert all(np.array_equal(blocks, both[key]) for key, blocks in whole.blocks.items())
    assert repr(found(second).fits) == repr(found(whole).fits)
    assert torch.equal(second.streams[1].hidden, whole.streams[1].hidden)
    for name, entry in found(whole).imatrix.entries.items():
        assert np.array_equal(entry.sums, found(second).imatrix.entries[name].sums)


def test_a_text_is_divided_evenly() -> None:
    tokens = np.arange(40 * 4, dtype=np.int32).reshape(40, 4)
    text = FeedbackText.of(Chunks(("a", "b"), tokens, 1), ONE)
    assert text.judged.tokens[:, 0].tolist() == [36, 76, 116, 156]
    assert (text.fit.n_chunk, text.chosen_by.n_chunk) == (29, 7)
    assert text.seen.n_chunk == 36 and text.seen.bos_id == 1 and text.seen.names == ("a", "b")
    assert sorted([*text.seen.tokens[:, 0], *text.judged.tokens[:, 0]]) == tokens[:, 0].tolist()
    assert np.array_equal(text.seen.tokens[:29], text.fit.tokens)
    long = FeedbackText.of(Chunks(("a",), np.zeros((1000, 4), np.int32), None), ONE)
    assert 12 <= long.judged.n_chunk <= 16
    three = FeedbackText.of(Chunks(("a",), tokens[:3], None), ONE)
    assert (three.fit.n_chunk, three.chosen_by.n_chunk, three.judged.n_chunk) == (1, 1, 1)


def test_two_chunks_are_too_little() -> None:
    with pytest.raises(TextError, match="8 tokens in chunks of 4 are too little for error feedback"):
        FeedbackText.of(Chunks(("a",), np.zeros((2, 4), np.int32), None), ONE)
