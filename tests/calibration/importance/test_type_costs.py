"""Predicted costs of types and weights of tokens, against the same numbers computed the long way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pico import pico_dense, pico_mixtral
from torch import Tensor

from calibration.forward.backward import GradientObserver, forward_and_back
from calibration.forward.gradients import Output
from calibration.forward.settings import ForwardSettings
from calibration.forward.stored import Matrix, to_tensor
from calibration.importance import error_effects, type_costs
from calibration.importance.observers import collect_imatrix
from calibration.importance.token_weights import TokenWeights
from calibration.importance.type_costs import TypeCosts, measure_type_costs, spread_chunks
from calibration.text.chunks import Chunks
from quantize.codec import decode, encode
from quantize.sources.checkpoint import Checkpoint, open_checkpoint
from quantize.tensors import QType, TensorSpec

pytestmark = pytest.mark.numeric

N_CHUNK, N_CTX, N_VOCAB = 5, 24, 320
EXACT = ForwardSettings()
TYPES = (QType.Q4_0, QType.Q8_0)  # of blocks that divide the rows of tiny models
HUGE = 10**9


@pytest.fixture(scope="module")
def chunks() -> Chunks:
    tokens = np.random.default_rng(5).integers(0, N_VOCAB, (N_CHUNK, N_CTX)).astype(np.int32)
    return Chunks(("text",), tokens, None)


class Long(GradientObserver):
    """The costs, each from the whole error of a matrix, token by token where that can be."""

    def __init__(self, costs: TypeCosts, source: Checkpoint, n_token: int) -> None:
        self.imatrix, self.source, self.n_token = costs.imatrix, source, n_token
        self.found: dict[tuple[str, QType], float] = {}
        self.specs = {spec.name: spec for spec in source.specs()}

    def error(self, spec: TensorSpec, xid: int, qtype: QType) -> Tensor:
        weights = self.source.read(spec, xid)
        decoded = decode(encode(weights, qtype, self.imatrix.guide(spec.name, xid)), qtype, spec.n_per_row)
        return torch.from_numpy(decoded) - to_tensor(weights, dtype=torch.float32)

    def add(self, name: str, qtype: QType, cost: Tensor) -> None:
        self.found[name, qtype] = self.found.get((name, qtype), 0.0) + float(cost)

    def gradients(self, spec: TensorSpec, xid: int, tokens: Tensor, x: Tensor, g: Tensor) -> None:
        for qtype in TYPES:
            change = torch.einsum("to,oi,ti->t", g, self.error(spec, xid, qtype), x)
            self.add(spec.name, qtype, change.square().sum() / (2 * self.n_token))

    def outputs(self, spec: TensorSpec, tokens: Tensor, x: Tensor, output: Output) -> None:
        probs = (x @ to_tensor(self.source.read(spec), dtype=torch.float32).T).softmax(-1)
        for qtype in TYPES:
            z = x @ self.error(spec, 0, qtype).T
            centered = z - (probs * z).sum(-1, keepdim=True)
            self.add(spec.name, qtype, (probs * centered.square()).sum() / (2 * self.n_token))

    def embedded(self, spec: TensorSpec, tokens: Tensor, token_ids: Tensor, g: Tensor) -> None:
        for qtype in TYPES:
            change = (self.error(spec, 0, qtype)[token_ids] * g).sum(-1)
            self.add(spec.name, qtype, change.square().sum() / (2 * self.n_token))


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("make", [pico_mixtral, pico_dense])
def test_costs_are_half_the_mean_squares_of_what_errors_change(
    make: Any, tied: bool, chunks: Chunks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(error_effects, "MIN_ROWS", 40)
    monkeypatch.setattr(error_effects, "UNIT_WEIGHTS", 1)
    source = open_checkpoint(make(tmp_path / "m", tokenizer=False, tied=tied))
    costs = measure_type_costs(source, chunks, TYPES, n_token=HUGE, settings=EXACT, seed=2)
    long = Long(costs, source, chunks.n_token)
    forward_and_back(source, chunks.inputs, [long], seed=2)
    assert {
        (name, qtype) for name, of_types in costs.costs.items() for qtype in of_types
    } == long.found.keys()
    for (name, qtype), wanted in long.found.items():
        assert costs.costs[name][qtype] == pytest.approx(wanted, rel=1e-3), (name, qtype)
        assert wanted > 0
    assert all(of_types[QType.Q8_0] < of_types[QType.Q4_0] for of_types in costs.costs.values())
    names = {spec.name for spec in source.specs() if spec.is_matrix and "ffn_gate_inp" not in spec.name}
    assert costs.costs.keys() == names
    assert costs.n_token == chunks.n_token and costs.unreached == ()


def test_some_chunks_suffice_and_the_importances_are_of_all(chunks: Chunks, tmp_path: Path) -> None:
    source = open_checkpoint(pico_mixtral(tmp_path / "m", tokenizer=False))
    wanted = collect_imatrix(source, chunks, settings=EXACT)
    costs = measure_type_costs(source, chunks, TYPES, n_token=2 * N_CTX, settings=EXACT)
    assert costs.n_token == 2 * N_CTX
    assert costs.imatrix.chunk_count == N_CHUNK and costs.load.n_token == chunks.n_token
    for name, entry in wanted.imatrix.entries.items():
        assert np.array_equal(entry.sums, costs.imatrix.entries[name].sums)
    again = measure_type_costs(
        source, chunks, TYPES, n_token=2 * N_CTX, imatrix=wanted.imatrix, settings=EXACT
    )
    assert again.imatrix is wanted.imatrix and again.load.n_token == 2 * N_CTX
    for name, of_types in costs.costs.items():
        for qtype, cost in of_types.items():
            assert again.costs[name][qtype] == pytest.approx(cost, rel=1e-3)


def test_costs_are_of_the_types_that_a_file_would_have(chunks: Chunks, tmp_path: Path) -> None:
    source = open_checkpoint(pico_dense(tmp_path / "m", tokenizer=False))
    types = (QType.Q4_K, QType.Q5_K, QType.Q5_1, QType.BF16)
    costs = measure_type_costs(source, chunks, types, n_token=1, settings=EXACT)
    assert costs.n_token == N_CTX
    assert all(list(of_types) == [QType.Q5_0, QType.Q5_1, QType.BF16] for of_types in costs.costs.values())
    assert all(of_types[QType.BF16] == 0 for of_types in costs.costs.values())


def test_matrices_without_tokens_cost_nothing_and_are_named(chunks: Chunks, tmp_path: Path) -> None:
    source = open_checkpoint(pico_mixtral(tmp_path / "m", tokenizer=False, n_expert=8, n_expert_used=1))
    one = chunks.part(0, 1)
    few = Chunks(one.names, one.tokens[:, :3], None)
    costs = measure_type_costs(source, few, TYPES, settings=EXACT)
    weights = TokenWeights()
    forward_and_back(source, few.inputs, [weights], settings=EXACT)
    assert costs.load.tokens.sum() == 2 * 3
    starved = {(bid, xid) for bid, xid in np.argwhere(costs.load.tokens == 0).tolist()}
    assert set(costs.unreached) == {
        (f"blk.{bid}.ffn_{part}_exps.weight", xid) for bid, xid in starved for part in ("gate", "up", "down")
    }
    bid, xid = min(starved)
    places, of_tokens = weights.of(f"blk.{bid}.ffn_up_exps.weight", xid)
    assert (
        places.dtype == np.int64 and of_tokens.dtype == np.float32 and not len(places) and not len(of_tokens)
    )


def test_narrow_products_give_nearly_the_same_costs(chunks: Chunks, tmp_path: Path) -> None:
    """Labels differ where the logits are next to equal, so single tokens may weigh otherwise."""
    source = open_checkpoint(pico_dense(tmp_path / "m", tokenizer=False))
    exact, narrow = (
        measure_type_costs(source, chunks, TYPES, settings=ForwardSettings(dtype=dtype))
        for dtype in (torch.float32, torch.bfloat16)
    )
    ratios = [
        narrow.costs[name][qtype] / cost
        for name, of_types in exact.costs.items()
        for qtype, cost in of_types.items()
    ]
    assert 0.8 < float(np.median(ratios)) < 1.25 and max(ratios) < 2 and min(ratios) > 0.5


def test_tokens_weigh_as_the_squares_of_their_gradients(chunks: Chunks, tmp_path: Path) -> None:
    source = open_checkpoint(pico_mixtral(tmp_path / "m", tokenizer=False))
    weights = TokenWeights()
    forward_and_back(source, chunks.inputs, [weights], settings=EXACT, seed=4)

    class Check(GradientObserver):
        def __init__(self) -> None:
            self.n_seen = 0

        def gradients(self, spec: TensorSpec, xid: int, tokens: Tensor, x: Tensor, g: Tensor) -> None:
            places, of_tokens = weights.of(spec.name, xid)
            assert np.array_equal(places, tokens.numpy())  # a short text is one group
            np.testing.assert_allclose(of_tokens, g.square().sum(-1).numpy(), rtol=1e-4, atol=1e-9)
            self.n_seen += len(tokens)

        def finished(self, matrix: Matrix) -> None:
            if matrix.spec.bid is None:
                assert not len(weights.of(matrix.spec.name)[0])

    check = Check()
    forward_and_back(source, chunks.inputs, [check], seed=4)
    assert check.n_seen == 2 * (4 + 2 * 3) * chunks.n_token  # layers, matrices that see a token


def test_chunks_are_spread_evenly() -> None:
    text = Chunks(("text",), np.zeros((10, 8), np.int32), None)
    assert spread_chunks(text, 16) == [2, 7]
    assert spread_chunks(text, 1) == [5]
    assert spread_chunks(text, HUGE) == list(range(10))
    assert len(set(spread_chunks(text, 7 * 8))) == 7


def test_the_output_is_measured_by_some_tokens(
    chunks: Chunks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = open_checkpoint(pico_dense(tmp_path / "m", tokenizer=False))
    whole = measure_type_costs(source, chunks, TYPES, settings=EXACT).costs["output.weight"]
    monkeypatch.setattr(type_costs, "N_OUTPUT", 30)
    some = measure_type_costs(source, chunks, TYPES, settings=EXACT).costs["output.weight"]
    for qtype, cost in whole.items():
        assert some[qtype] != cost and some[qtype] == pytest.approx(cost, rel=0.3)
