"""How much tokens count, and the embedding's blocks by the gradients at its rows."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from pico import pico_mixtral

from calibration.feedback import fisher
from calibration.feedback.embedding import encode_embedding, encodes_embedding
from calibration.feedback.fisher import Fisher, Lookups
from calibration.forward.settings import ForwardSettings
from calibration.text.chunks import Chunks
from quantize.codec import decode, encode
from quantize.sources.checkpoint import Checkpoint, open_checkpoint
from quantize.telling import silent
from quantize.tensors import Array, QType

pytestmark = pytest.mark.numeric

N_CHUNK, N_CTX, N_VOCAB, N_FIT = 8, 32, 320, 6 * 32


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    n_thread = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n_thread)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return open_checkpoint(
        pico_mixtral(tmp_path_factory.mktemp("m") / "m", n_embd=256, n_expert=3, tokenizer=False)
    )


@pytest.fixture(scope="module")
def chunks() -> Chunks:
    tokens = np.random.default_rng(5).integers(0, N_VOCAB, (N_CHUNK, N_CTX)).astype(np.int32)
    return Chunks(("text",), tokens, None)


def collected(source: Checkpoint, chunks: Chunks) -> tuple[Fisher, Lookups]:
    found, lookups = Fisher(), Lookups(256, N_FIT, "cpu")
    found.collect(source, chunks, lookups, ForwardSettings(), silent)
    return found, lookups


@pytest.mark.parametrize("n_together", [N_CHUNK, 3])
def test_tokens_weigh_one_in_the_mean(
    source: Checkpoint, chunks: Chunks, n_together: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many chunks go through the model at a time, each token has its weight at each matrix that it reaches."""
    n_bytes = source.hparams.n_layer * 256 * 4 * N_CTX
    monkeypatch.setattr(fisher, "LAYER_BYTES", n_bytes * n_together)
    found, lookups = collected(source, chunks)
    everyone = torch.arange(N_CHUNK * N_CTX)
    for name in ("blk.0.attn_q.weight", "blk.1.attn_output.weight"):
        weights = found.of(name, 0, everyone)
        assert weights is not None and weights.dtype == torch.float32
        assert float(weights.mean()) == pytest.approx(1, rel=1e-4) and float(weights.std()) > 0.1
        some = torch.tensor([3, 40, 200])
        assert torch.equal(weights[some], found.of(name, 0, some))  # type: ignore[arg-type]
    places = [torch.from_numpy(found.kept()[f"blk.1.ffn_up_exps.weight.{xid}.tokens"]) for xid in range(3)]
    assert sorted(torch.cat(places).tolist()) == sorted(everyone.tolist() * 2)  # two experts a token
    for xid, reached in enumerate(places):
        assert (reached.diff() > 0).all()
        weights = found.of("blk.1.ffn_up_exps.weight", xid, everyone)
        assert weights is not None
        is_reached = torch.isin(everyone, reached)
        assert (weights[~is_reached] == 1).all()
        assert float(weights[is_reached].mean()) == pytest.approx(1, rel=1e-4)
    assert lookups.n_held_out == 2 * N_CTX
    assert found.of("blk.0.ffn_norm.weight", 0, everyone) is None


def test_weights_survive_a_run_that_is_stopped(source: Checkpoint, chunks: Chunks) -> None:
    found, _ = collected(source, chunks.part(0, 2))
    again = Fisher()
    again.restore(found.kept())
    assert found.kept().keys() == again.kept().keys() and len(found.kept()) > 20
    assert all(np.array_equal(array, again.kept()[name]) for name, array in found.kept().items())
    assert Fisher().kept() == {}


def test_an_error_of_the_embedding_costs_what_it_changes() -> None:
    lookups = Lookups(4, 2, "cpu")
    rng = np.random.default_rng(0)
    ids, g = np.array([1, 0, 2, 1, 1]), rng.standard_normal((5, 4)).astype(np.float32)
    lookups.embedded(None, torch.arange(5), torch.from_numpy(ids), torch.from_numpy(g))  # type: ignore[arg-type]
    apart = rng.standard_normal((3, 4)).astype(np.float32)
    wanted = sum(float(apart[ids[t]] @ g[t]) ** 2 for t in (2, 3, 4))
    assert lookups.n_held_out == 3
    assert lookups.cost(torch.from_numpy(apart)) == pytest.approx(wanted, rel=1e-5)
    squares = g[:2].T @ g[:2]
    known = lookups.moments.damped(0.1).known.moments
    np.testing.assert_allclose(
        known, squares + 0.1 * np.diag(squares).mean() * np.eye(4), rtol=1e-5, atol=1e-6
    )


def embedding(source: Checkpoint, qtype: QType, lookups: Lookups) -> tuple[Array, float] | None:
    """The blocks, and their cost relative to that of the plain ones."""
    with ThreadPoolExecutor(2) as workers:
        made = encode_embedding(source, qtype, lookups, N_FIT, 2, workers)
    if made is None:
        return None
    aim, fitted = made
    assert (aim.spec.name, fitted.fit.name, fitted.fit.qtype) == ("token_embd.weight",) * 2 + (qtype.name,)
    assert torch.equal(fitted.values, torch.from_numpy(decode(fitted.blocks, qtype, 256)))
    return fitted.blocks, fitted.fit.ratio


def test_the_embedding_is_encoded_by_gradients(source: Checkpoint, chunks: Chunks) -> None:
    _, lookups = collected(source, chunks)
    made = embedding(source, QType.Q4_K, lookups)
    assert made is not None and made[1] <= 1
    spec = next(spec for spec in source.specs() if spec.name == "token_embd.weight")
    plain = encode(source.read(spec), QType.Q4_K)
    assert made[0].shape == plain.shape
    assert (made[1] == 1) == np.array_equal(made[0], plain)
    assert embedding(source, QType.Q4_K, Lookups(256, N_FIT, "cpu")) is None  # nothing was held out
    for qtype in (QType.IQ3_S, QType.Q4_1, QType.F16, None):
        assert not encodes_embedding(source, qtype)


def test_an_embedding_that_is_the_output_too_is_left_alone(tmp_path: Path) -> None:
    tied = open_checkpoint(pico_mixtral(tmp_path / "m", n_embd=256, tied=True, tokenizer=False))
    assert not encodes_embedding(tied, QType.Q4_K)
    assert embedding(tied, QType.Q4_K, Lookups(256, N_FIT, "cpu")) is None
