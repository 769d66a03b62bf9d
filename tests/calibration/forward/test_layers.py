"""The pure functions of a layer: gradients flow through them, and a layer can be computed again from its input."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from pico import pico_mixtral
from torch import Tensor

from calibration.forward import layers
from calibration.forward.attention import Grouped, attend
from calibration.forward.forward_pass import ForwardPass
from calibration.forward.graph import ModelGraph, Unit, name_in_layer
from calibration.forward.hidden import Storage
from calibration.forward.int8 import round_f16
from calibration.forward.layers import Linear, Norm
from calibration.forward.rope import make_rope, rotate
from calibration.forward.routing import Router
from calibration.forward.run import forward
from calibration.forward.saved_state import PassState
from calibration.forward.settings import ForwardSettings
from calibration.forward.stored import Matrix, to_tensor
from calibration.forward.streams import Given, Observer, Stream
from calibration.forward.ties import best, first_equal
from calibration.forward.timings import Stage, Timings
from quantize.sources.checkpoint import Checkpoint, open_checkpoint
from quantize.tensors import Array, TensorSpec

pytestmark = pytest.mark.numeric

N_CHUNK, N_CTX, N_VOCAB = 3, 48, 320


@pytest.fixture(scope="module")
def tokens() -> np.ndarray:
    return np.random.default_rng(5).integers(0, N_VOCAB, (N_CHUNK, N_CTX)).astype(np.int32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pico_mixtral(tmp_path_factory.mktemp("pico") / "m", n_layer=3, n_expert=5, tokenizer=False)


class Layer:
    """One layer of a checkpoint out of pure functions; its weights take gradients."""

    def __init__(self, source: Checkpoint, bid: int) -> None:
        self.source, self.bid = source, bid
        self.specs = {spec.name: spec for spec in source.specs()}
        self.weights: dict[tuple[str, int], Tensor] = {}
        self.rope = make_rope(source.hparams, N_CTX)

    def tensor(self, name: str, xid: int = 0) -> Tensor:
        if (name, xid) not in self.weights:
            spec = self.specs[f"blk.{self.bid}.{name}.weight"]
            tensor = to_tensor(Matrix.read(self.source, spec, xid).whole(), dtype=torch.float32)
            self.weights[name, xid] = tensor.requires_grad_()
        return self.weights[name, xid]

    def vector(self, name: str) -> Tensor:
        return self.tensor(name).reshape(-1)

    def norm(self, h: Tensor, name: str) -> Tensor:
        return Norm(self.vector(name), self.source.hparams.norm_eps)(h)

    def __call__(self, h: Tensor) -> Tensor:
        """h [T, D] -> [T, D]."""
        hparams = self.source.hparams
        attention = ModelGraph(hparams, self.specs).attention(self.bid, self.rope, self.vector)
        products = {name: Linear(self.tensor(name)) for name in attention.matrices}
        x = self.norm(h, "attn_norm")
        h = h + attention(x, products)
        x = self.norm(h, "ffn_norm")
        routing = Router(self.tensor("ffn_gate_inp"), hparams.n_expert_used)(x)
        y = torch.zeros_like(h)
        for xid in range(hparams.n_expert):
            places, slots = (routing.ids == xid).nonzero(as_tuple=True)
            of_expert = (Linear(self.tensor(f"ffn_{name}_exps", xid)) for name in ("gate", "up", "down"))
            share = layers.expert(x[places], *of_expert) * routing.weights[places, slots, None]
            y = y.index_add(0, places, share)
        return h + y


def test_gradients_are_those_of_transformers(folder: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="sdpa"
    ).model
    generator = torch.Generator().manual_seed(1)
    h = torch.randn(N_CHUNK, N_CTX, 64, generator=generator)
    direction = torch.randn(h.shape, generator=generator)

    theirs = h.clone().requires_grad_()
    positions = torch.arange(N_CTX)[None]
    embeddings = model.rotary_emb(theirs, positions)
    wanted = model.layers[1](theirs, position_embeddings=embeddings)
    wanted = wanted[0] if isinstance(wanted, tuple) else wanted
    (wanted * direction).sum().backward()

    ours, layer = h.flatten(0, 1).clone().requires_grad_(), Layer(open_checkpoint(folder), 1)
    y = layer(ours)
    (y * direction.flatten(0, 1)).sum().backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(y, wanted.flatten(0, 1), rtol=1e-4, atol=1e-4)
    assert theirs.grad is not None
    torch.testing.assert_close(ours.grad, theirs.grad.flatten(0, 1), rtol=1e-4, atol=1e-4)
    for name, module in (("attn_v", "v_proj"), ("attn_output", "o_proj")):  # rows of q and k are permuted
        gradient = getattr(model.layers[1].self_attn, module).weight.grad
        torch.testing.assert_close(layer.tensor(name).grad, gradient, rtol=1e-4, atol=1e-4)
    assert all(weight.grad is not None and weight.grad.any() for weight in layer.weights.values())


def test_gradients_of_an_expert_are_those_of_differences() -> None:
    generator = torch.Generator().manual_seed(2)
    x, gate, up, down = (
        torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()
        for shape in ((4, 6), (5, 6), (5, 6), (6, 5))
    )
    assert torch.autograd.gradcheck(
        lambda x, *weights: layers.expert(x, *(Linear(weight) for weight in weights)), (x, gate, up, down)
    )


@pytest.mark.parametrize("with_gradient", [False, True])
def test_arguments_are_left_alone(with_gradient: bool) -> None:
    """The fast path without gradients overwrites results of products only, and gives the same numbers."""
    generator = torch.Generator().manual_seed(3)
    x, *weights = (
        torch.randn(*shape, generator=generator) for shape in ((8, 16), (24, 16), (24, 16), (16, 24))
    )
    before = [tensor.clone() for tensor in (x, *weights)]
    with torch.set_grad_enabled(with_gradient):
        y = layers.expert(x, *(Linear(weight) for weight in weights))
    assert all(torch.equal(one, other) for one, other in zip(before, (x, *weights), strict=True))
    with torch.set_grad_enabled(not with_gradient):
        assert torch.equal(y, layers.expert(x, *(Linear(weight) for weight in weights)))


@pytest.mark.parametrize("scratch", [False, True])
def test_a_layer_can_be_computed_again_from_its_input(
    folder: Path, tokens: np.ndarray, tmp_path: Path, scratch: bool
) -> None:
    source = open_checkpoint(folder)
    settings = ForwardSettings(scratch=tmp_path if scratch else None)
    forward_pass = ForwardPass([Stream(source)], tokens, settings, Storage(settings), keep_layers=True)
    forward_pass.run()
    (state,) = forward_pass.states
    outputs = [*state.layer_inputs[1:], state.hidden]
    assert len(outputs) == 3
    for bid, (kept, wanted) in enumerate(zip(state.layer_inputs, outputs, strict=True)):
        h = kept.clone().requires_grad_()
        y = Layer(source, bid)(h)
        torch.testing.assert_close(y.detach(), wanted, rtol=1e-6, atol=1e-6)
        y.square().sum().backward()  # type: ignore[no-untyped-call]
        assert h.grad is not None
        assert torch.isfinite(h.grad).all()


@pytest.mark.parametrize("n_token", [1, 3, 700])
@pytest.mark.parametrize("n_expert", [2, 3, 4, 5, 8, 9, 16])
def test_equal_rows_of_a_router_tie(n_expert: int, n_token: int) -> None:
    """Whatever the order in which the columns of the product are added up: of equal experts the first are chosen."""
    generator = torch.Generator().manual_seed(n_expert)
    x, router = (torch.randn(n, 256, generator=generator) for n in (n_token, n_expert))
    router[n_expert // 2] = router[-1] = router[0]
    routing = Router(router, 2)(x)
    equal = routing.probs[:, [0, n_expert // 2, -1]]
    assert (equal == equal[:, :1]).all()
    sums = (router[:, None].double() * x.double()).sum(-1)  # [E, T], each row added up alone
    for token, ids in enumerate(routing.ids.tolist()):
        wanted = sorted(range(n_expert), key=lambda xid: -float(sums[xid, token]))[:2]  # sorted is stable
        assert ids == wanted


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gates_of_zeros_choose_the_first_experts(dtype: torch.dtype) -> None:
    router = torch.zeros(4, 64, dtype=dtype)
    router[2] = -0.0
    routing = Router(router, 3)(torch.randn(50, 64))
    assert (routing.ids == torch.tensor([0, 1, 2])).all()
    torch.testing.assert_close(routing.weights, torch.full((50, 3), 1 / 3))


@pytest.mark.parametrize(
    ("n_expert", "wanted"),
    [
        (16, [0, 1, 2, 3]),
        (17, [8, 16, 15, 14]),
        (20, [10, 19, 18, 17]),
    ],
)
def test_of_many_equal_experts_those_of_llama_imatrix(n_expert: int, wanted: list[int]) -> None:
    """What llama-imatrix counted of a router of zeros, with one, two and four experts used."""
    probs = torch.full((3, n_expert), 1 / n_expert)
    probs[1] = torch.arange(n_expert) / n_expert
    for n_used in (1, 2, 4):
        ids = best(probs, n_used)
        assert ids[[0, 2]].sort().values.tolist() == [sorted(wanted[:n_used])] * 2
        assert ids[1].tolist() == [n_expert - 1 - place for place in range(n_used)]


def test_the_best_are_the_best_with_any_ties() -> None:
    generator = torch.Generator().manual_seed(7)
    for n_expert in (4, 17, 33, 128):
        probs = torch.randint(0, 6, (200, n_expert), generator=generator).float()
        ids = best(probs, 3)
        assert all(len(set(row)) == 3 for row in ids.tolist())
        assert torch.equal(probs.gather(-1, ids), probs.topk(3).values)


def test_the_first_of_equal_rows() -> None:
    rows = torch.tensor([[1.0, 2.0], [0.0, 0.0], [1.0, 2.0], [3.0, 0.0], [-0.0, 0.0], [1.0, 2.0]])
    assert first_equal(rows).tolist() == [0, 1, 0, 3, 1, 0]


def test_keys_and_values_may_be_rounded_as_a_cache_does(folder: Path) -> None:
    generator = torch.Generator().manual_seed(4)
    x, q, k, v, o = (torch.randn(shape, 64, generator=generator) for shape in (24, 64, 32, 32, 64))
    rope = make_rope(open_checkpoint(folder).hparams, 12)
    attention = Grouped(rope, n_head=4, n_head_kv=2, head_dim=16, head_dim_v=16, scale=0.25)
    weights = dict(zip(attention.matrices, map(Linear, (q, k, v, o)), strict=True))
    seen: list[Tensor] = []

    def cached(values: Tensor) -> Tensor:
        seen.append(values)
        return round_f16(values)

    found = attention(x, weights, cached)
    keys = rotate((x @ k.T).view(2, 12, 2, 16), rope)
    values = (x @ v.T).view(2, 12, 2, 16)
    for one, wanted in zip(seen, (keys, values), strict=True):
        torch.testing.assert_close(one, wanted)
    mixed = attend(rotate((x @ q.T).view(2, 12, 4, 16), rope), round_f16(keys), round_f16(values), 0.25)
    torch.testing.assert_close(found, mixed.reshape(24, -1) @ o.T)
    assert (found != attention(x, weights)).any()


class Silent:
    """A keeper that keeps nothing."""

    def recall(self, state: PassState) -> None:
        pass

    def keep(self, state: PassState) -> None:
        pass


def test_layers_of_an_earlier_run_have_no_inputs(folder: Path, tokens: np.ndarray) -> None:
    settings = ForwardSettings()
    stream = Stream(open_checkpoint(folder))
    forward_pass = ForwardPass([stream], tokens, settings, Storage(settings), keep_layers=True)
    with pytest.raises(ValueError, match="earlier run"):
        forward_pass.run(keeper=Silent())


class SecondMoments(Observer):
    """Σ x xᵀ of every matrix, which is too large to be kept for a whole layer."""

    def __init__(self) -> None:
        self.sums: dict[tuple[str, int], Tensor] = {}
        self.most_held = 0

    def inputs(self, stream: int, specs: Sequence[TensorSpec], xid: int, tokens: Tensor, x: Tensor) -> None:
        for spec in specs:
            key = spec.name, xid
            self.sums[key] = self.sums.get(key, 0) + x.double().T @ x.double()
        self.most_held = max(self.most_held, sum("ffn_down" in name for name, _ in self.sums))

    def pop(self, spec: TensorSpec, xid: int) -> Tensor | None:
        return self.sums.pop((spec.name, xid), None)


class Inputs(Observer):
    """All inputs."""

    def __init__(self) -> None:
        self.rows: dict[tuple[str, int], list[Tensor]] = {}

    def inputs(self, stream: int, specs: Sequence[TensorSpec], xid: int, tokens: Tensor, x: Tensor) -> None:
        for spec in specs:
            self.rows.setdefault((spec.name, xid), []).append(x.double().clone())


@pytest.mark.parametrize("hold_down", [False, True])
def test_observers_give_away_what_they_know_with_the_weights(
    folder: Path, tokens: np.ndarray, hold_down: bool
) -> None:
    moments, inputs = SecondMoments(), Inputs()
    given: dict[tuple[str, int], Tensor | None] = {}

    def on_weights(spec: TensorSpec, xid: int, weights: Array, of_observers: Given) -> None:
        assert weights.shape == (spec.n_row, spec.n_per_row)
        assert of_observers[inputs] is None
        given[spec.name, xid] = of_observers[moments]

    source = open_checkpoint(folder)
    observers = [moments, inputs]
    forward([Stream(source)], tokens, observers=observers, on_weights=on_weights, hold_down=hold_down)
    assert set(given) == {(spec.name, xid) for spec in source.specs() for xid in range(spec.n_matrix)}
    for key, sums in given.items():
        if key in inputs.rows:
            rows = torch.cat(inputs.rows[key])
            torch.testing.assert_close(sums, rows.T @ rows)
        else:
            assert sums is None
    assert moments.most_held == 1
    assert not moments.sums


def test_nothing_is_kept_where_nobody_wants_weights(folder: Path, tokens: np.ndarray) -> None:
    moments = SecondMoments()
    forward([Stream(open_checkpoint(folder))], tokens, observers=[moments])
    assert not moments.sums


def test_an_observer_that_cannot_go_on_is_refused_at_once(folder: Path, tokens: np.ndarray) -> None:
    source = open_checkpoint(folder)
    with pytest.raises(TypeError, match="SecondMoments keeps nothing"):
        forward([Stream(source)], tokens, observers=[SecondMoments()], keeper=Silent())
    assert source.bytes_read == 0


def test_tensors_of_the_steps_of_a_layer(folder: Path) -> None:
    source = open_checkpoint(folder)
    names = {spec.name for spec in source.specs()}
    graph = ModelGraph(source.hparams, names)
    assert graph.router_name(1) == "blk.1.ffn_gate_inp.weight"
    assert graph.feed_forward_norm(2) == name_in_layer(2, "ffn_norm") == "blk.2.ffn_norm.weight"
    assert graph.units(1) == [Unit("expert", 1, xid) for xid in range(5)]
    gate, up, down = graph.units(1)[3].names
    assert (gate, up, down) == tuple(f"blk.1.ffn_{name}_exps.weight" for name in ("gate", "up", "down"))
    shared = {"blk.1.ffn_gate_shexp.weight", "blk.1.ffn_gate_inp_shexp.weight"}
    with_shared = ModelGraph(source.hparams, names | shared)
    assert with_shared.units(1)[5] == Unit("shared", 1, gate_name="blk.1.ffn_gate_inp_shexp.weight")
    assert len(with_shared.units(0)) == 5
    assert ModelGraph(source.hparams, names - {"blk.0.ffn_gate_inp.weight"}).units(0) == [Unit("dense", 0)]


def test_time_within_another_stage_counts_once(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 1.0, 3.0, 4.0, 7.0, 10.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    timings = Timings(n_token=5)
    with timings.measure(Stage.ATTENTION):  # 0 to 10
        with timings.measure(Stage.PRODUCTS):  # 1 to 3
            pass
        with timings.measure(Stage.PRODUCTS):  # 4 to 7
            pass
    assert timings.seconds[Stage.PRODUCTS] == 5
    assert timings.seconds[Stage.ATTENTION] == 5
    figures = timings.as_dict()
    assert figures["n_token"] == 5
    other = Timings()
    other.restore(figures)
    assert other.as_dict() == figures
    with pytest.raises(KeyError):
        other.restore({"n_token": 1})
    assert other.as_dict() == figures


def test_the_words_of_fingerprints_stay() -> None:
    """Journals and states that were written by earlier versions go on only if these are the same."""
    assert ForwardSettings().numerics == "Arithmetic(device='cpu', dtype=torch.float32) torch.float32"
    narrow = ForwardSettings("cuda", torch.bfloat16, torch.bfloat16, Path("x"))
    assert narrow.numerics == "Arithmetic(device='cuda', dtype=torch.bfloat16) torch.bfloat16"
