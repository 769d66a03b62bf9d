"""The streamed pass backwards against plain autograd through the whole of tiny models."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pico import pico_dense, pico_mixtral
from torch import Tensor
from torch.nn import functional

from calibration.forward import backward, layers, stream_state
from calibration.forward.attention import Grouped
from calibration.forward.backward import BackwardPass, GradientObserver, forward_and_back
from calibration.forward.forward_pass import ForwardPass
from calibration.forward.gradients import Output
from calibration.forward.hidden import Storage
from calibration.forward.layers import Norm
from calibration.forward.rope import make_rope
from calibration.forward.routing import Router
from calibration.forward.settings import ForwardSettings
from calibration.forward.stored import Matrix, to_tensor
from calibration.forward.streams import Stream
from calibration.importance.observers import ImatrixObserver
from calibration.text.chunks import Chunks
from quantize.sources.checkpoint import Checkpoint, open_checkpoint
from quantize.telling import Progress
from quantize.tensors import TensorSpec

pytestmark = pytest.mark.numeric

N_CHUNK, N_CTX, N_VOCAB = 3, 24, 320
EXACT = ForwardSettings()

Pairs = dict[tuple[str, int], tuple[Tensor, Tensor, Tensor]]
"""By matrix: tokens [t], inputs [t, n_in] and gradients [t, n_out]."""


@pytest.fixture(scope="module")
def tokens() -> np.ndarray:
    return np.random.default_rng(5).integers(0, N_VOCAB, (N_CHUNK, N_CTX)).astype(np.int32)


class Plain:
    """A whole model in plain torch; every product is remembered, with the tokens that it was of."""

    def __init__(self, source: Checkpoint) -> None:
        self.hparams = source.hparams
        self.weights = {
            (spec.name, xid): to_tensor(Matrix.read(source, spec, xid).whole(), dtype=torch.float32)
            for spec in source.specs()
            for xid in range(spec.n_matrix)
        }
        self.rope = make_rope(source.hparams, N_CTX)
        self.seen: list[tuple[tuple[str, int], Tensor, Tensor, Tensor]] = []

    def vector(self, name: str) -> Tensor:
        return self.weights[f"{name}.weight", 0].reshape(-1)

    def norm(self, x: Tensor, name: str) -> Tensor:
        return Norm(self.vector(name), self.hparams.norm_eps)(x)

    def product(self, name: str, tokens: Tensor, xid: int = 0) -> layers.Product:
        bias = self.weights.get((f"{name}.bias", 0))

        def multiply(x: Tensor) -> Tensor:
            y = functional.linear(x, self.weights[f"{name}.weight", xid])
            y = y if bias is None else y + bias.reshape(-1)
            y.retain_grad()
            self.seen.append(((f"{name}.weight", xid), tokens, x, y))
            return y

        return multiply

    def backward(self, token_ids: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The gradients of the rows that were looked up, and of the logits."""
        everything = torch.arange(token_ids.numel())
        rows = self.weights["token_embd.weight", 0][token_ids.reshape(-1)].requires_grad_()
        h = rows
        for bid in range(self.hparams.n_layer):
            h = self.layer(h, f"blk.{bid}.", everything)
        head = self.weights.get(("output.weight", 0), self.weights["token_embd.weight", 0])
        logits = functional.linear(self.norm(h, "output_norm"), head)
        logits.retain_grad()
        functional.cross_entropy(logits, labels, reduction="sum").backward()  # type: ignore[no-untyped-call]
        assert rows.grad is not None and logits.grad is not None
        return rows.grad, logits.grad

    def layer(self, h: Tensor, prefix: str, everything: Tensor) -> Tensor:
        attention = Grouped(
            self.rope,
            n_head=self.hparams.n_head,
            n_head_kv=self.hparams.n_head_kv,
            head_dim=self.hparams.head_dim,
            head_dim_v=self.hparams.head_dim,
            scale=self.hparams.head_dim**-0.5,
        )
        products = {name: self.product(f"{prefix}{name}", everything) for name in attention.matrices}
        h = h + attention(self.norm(h, f"{prefix}attn_norm"), products)
        x = self.norm(h, f"{prefix}ffn_norm")
        if not self.hparams.n_expert:
            names = (f"{prefix}ffn_{name}" for name in ("gate", "up", "down"))
            return h + layers.expert(x, *(self.product(name, everything) for name in names))
        router = Router(self.weights[f"{prefix}ffn_gate_inp.weight", 0], self.hparams.n_expert_used)
        routing = router(x)
        for xid in range(self.hparams.n_expert):
            tokens, slots = (routing.ids == xid).nonzero(as_tuple=True)
            names = (f"{prefix}ffn_{name}_exps" for name in ("gate", "up", "down"))
            y = layers.expert(x[tokens], *(self.product(name, tokens, xid) for name in names))
            h = h.index_add(0, tokens, y * routing.weights[tokens, slots, None])
        return h

    def pairs(self) -> Pairs:
        found = {}
        for key, tokens, x, y in self.seen:
            assert y.grad is not None
            found[key] = (tokens, x.detach(), y.grad)
        return found


class Gathered(GradientObserver):
    """Keeps all that is shown."""

    def __init__(self) -> None:
        self.groups: dict[tuple[str, int], list[tuple[Tensor, Tensor, Tensor]]] = defaultdict(list)
        self.logits: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
        self.rows: list[tuple[Tensor, Tensor, Tensor]] = []
        self.done: list[tuple[str, int]] = []

    def gradients(self, spec: TensorSpec, xid: int, tokens: Tensor, x: Tensor, g: Tensor) -> None:
        self.groups[spec.name, xid].append((tokens, x, g))

    def outputs(self, spec: TensorSpec, tokens: Tensor, x: Tensor, output: Output) -> None:
        assert output.bias is None
        self.logits.append((tokens, x, output.log_total, output.g.clone()))

    def embedded(self, spec: TensorSpec, tokens: Tensor, token_ids: Tensor, g: Tensor) -> None:
        self.rows.append((tokens, token_ids, g))

    def finished(self, matrix: Matrix) -> None:
        assert matrix.whole().shape == (matrix.spec.n_row, matrix.spec.n_per_row)
        self.done.append((matrix.spec.name, matrix.xid))

    def pairs(self) -> Pairs:
        joined: Pairs = {}
        for key, groups in self.groups.items():
            tokens, x, g = (torch.cat(parts) for parts in zip(*groups, strict=True))
            joined[key] = (tokens, x, g)
        return joined


def gone_back(source: Checkpoint, tokens: np.ndarray, **options: Any) -> tuple[BackwardPass, Gathered]:
    settings = options.pop("settings", EXACT)
    there = ForwardPass([Stream(source)], tokens, settings, Storage(settings), keep_layers=True, **options)
    there.run()
    gathered = Gathered()
    back = BackwardPass(there, [gathered], seed=1)
    back.run()
    return back, gathered


SHAPES: dict[str, tuple[Any, dict[str, Any]]] = {
    "mixtral": (pico_mixtral, {"n_expert": 5}),
    "mixtral, tied": (pico_mixtral, {"tied": True}),
    "three experts used": (pico_mixtral, {"n_expert": 4, "n_expert_used": 3}),
    "llama with biases": (pico_dense, {"architecture": "LlamaForCausalLM", "biases": True}),
    "mistral, tied, one key head": (pico_dense, {"tied": True, "n_head_kv": 1}),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_gradients_are_those_of_autograd(
    shape: str, tokens: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, options = SHAPES[shape]
    source = open_checkpoint(make(tmp_path / "m", tokenizer=False, **options))
    monkeypatch.setattr(stream_state, "TOKEN_GROUP", 30)
    monkeypatch.setattr(backward, "LOGIT_BYTES", 4 * N_VOCAB * 31)
    back, gathered = gone_back(source, tokens)
    plain = Plain(source)
    of_rows, of_logits = plain.backward(torch.from_numpy(tokens).long(), back.labels)
    wanted, found = plain.pairs(), gathered.pairs()
    assert found.keys() == wanted.keys()
    for key, (places, x, g) in wanted.items():
        assert torch.equal(found[key][0], places), key
        torch.testing.assert_close(found[key][1], x, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(found[key][2], g, rtol=1e-4, atol=1e-5)
    places, token_ids, g = (torch.cat(parts) for parts in zip(*gathered.rows, strict=True))
    assert places.tolist() == list(range(tokens.size)) and token_ids.tolist() == tokens.reshape(-1).tolist()
    torch.testing.assert_close(g, of_rows, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        torch.cat([parts[3] for parts in gathered.logits]), of_logits, rtol=1e-4, atol=1e-5
    )
    matrices = {(spec.name, xid) for spec in source.specs() for xid in range(spec.n_matrix) if spec.is_matrix}
    assert set(gathered.done) == {key for key in matrices if "ffn_gate_inp" not in key[0]}
    assert len(gathered.done) == len(set(gathered.done))


def test_some_chunks_go_back_alone(tmp_path: Path) -> None:
    """Chunks know nothing of one another: what is kept does not hang on what else passed, nor on where it lies."""
    source = open_checkpoint(pico_mixtral(tmp_path / "m", tokenizer=False))
    text = np.random.default_rng(6).integers(0, N_VOCAB, (5, N_CTX)).astype(np.int32)
    observed = ImatrixObserver(Chunks(("text",), text, None))
    back, some = gone_back(
        source, text, kept_chunks=[1, 4], observers=[observed], settings=ForwardSettings(scratch=tmp_path)
    )
    alone_back, alone = gone_back(source, text[[1, 4]])
    assert torch.equal(back.labels, alone_back.labels)
    assert observed.imatrix.entries["blk.0.attn_q.weight"].counts[0] == text.size
    places = torch.cat([torch.arange(N_CTX, 2 * N_CTX), torch.arange(4 * N_CTX, 5 * N_CTX)])
    for key, (tokens, x, g) in alone.pairs().items():
        assert torch.equal(some.pairs()[key][0], places[tokens])
        torch.testing.assert_close(some.pairs()[key][1], x, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(some.pairs()[key][2], g, rtol=1e-4, atol=1e-5)


def test_each_weight_is_read_once_on_the_way_back(tokens: np.ndarray, tmp_path: Path) -> None:
    source = open_checkpoint(pico_mixtral(tmp_path / "m", tokenizer=False))
    there = ForwardPass([Stream(source)], tokens, EXACT, Storage(EXACT), keep_layers=True)
    there.run()
    before = source.bytes_read
    BackwardPass(there, []).run()
    assert source.bytes_read - before == sum(spec.n_bytes for spec in source.specs())


def test_labels_are_drawn_from_the_models_own_expectations() -> None:
    probs = torch.tensor([0.1, 0.0, 0.6, 0.3]).expand(20_000, 4)
    draws = torch.rand(20_000, generator=torch.Generator().manual_seed(0))
    shares = torch.bincount(backward._drawn(probs, draws), minlength=4) / 20_000
    torch.testing.assert_close(shares, probs[0], rtol=0, atol=0.02)
    assert shares[1] == 0
    edges = torch.tensor([[0.0, 1.0, 0.0]]).expand(2, 3)
    assert backward._drawn(edges, torch.tensor([0.0, 1.0 - 2**-24])).tolist() == [1, 1]


def test_narrow_products_stay_close_and_the_seed_decides(tmp_path: Path, tokens: np.ndarray) -> None:
    source = open_checkpoint(pico_dense(tmp_path / "m", tokenizer=False))
    found: dict[str, Gathered] = {}
    told: list[Progress] = []
    for label, dtype, seed in (
        ("exact", "float32", 3),
        ("again", "float32", 3),
        ("other", "float32", 4),
        ("narrow", "bfloat16", 3),
    ):
        found[label] = Gathered()
        settings = ForwardSettings(dtype=getattr(torch, dtype))
        timings = forward_and_back(
            source, tokens, [found[label]], settings=settings, seed=seed, progress=told.append
        )
        assert timings.n_token == tokens.size and timings.total > 0
    key = ("blk.0.attn_v.weight", 0)
    exact, again, other, narrow = (
        found[label].pairs()[key][2] for label in ("exact", "again", "other", "narrow")
    )
    assert torch.equal(exact, again) and not torch.equal(exact, other)
    assert narrow.dtype == torch.bfloat16
    assert float((narrow.float() - exact).square().mean() / exact.square().mean()) < 0.2  # labels differ, too
    assert [one.done for one in told if one.stage == "gradients"][:2] == [1, 2]
