"""The choice among dampings by held-out tokens, and what is encoded plainly."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import Tensor

from calibration.feedback import fitting
from calibration.feedback.fitting import DAMPINGS, Aim, FeedbackSettings, Fitted, Fitter
from calibration.feedback.moments import Visit
from quantize.codec import decode, encode
from quantize.guide import Guide
from quantize.tensors import Array, QType, TensorSpec

pytestmark = pytest.mark.numeric

N, N_ROW = 256, 32
SPEC = TensorSpec("blk.0.ffn_up.weight", (N_ROW, N), QType.BF16)
IMPORTANCE: Array = np.linspace(0.5, 2, N, dtype=np.float32)


@pytest.fixture
def workers() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as pool:
        yield pool


def some_weights(seed: int = 0) -> Tensor:
    return torch.randn(N_ROW, N, generator=torch.Generator().manual_seed(seed))


def inputs(n: int, seed: int) -> Tensor:
    """Tokens [n, 256], most of which lies in few directions, the same for each seed."""
    few = torch.randn(12, N, generator=torch.Generator().manual_seed(99))
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(n, 12, generator=rng) @ few + 0.3 * torch.randn(n, N, generator=rng)


def fit(
    fitter: Fitter,
    fitted: Iterable[Visit],
    held_out: Iterable[Visit],
    aims: list[Aim] | None = None,
    *,
    gap_of_inputs: bool = True,
) -> list[Fitted]:
    parts = {False: list(fitted), True: list(held_out)}
    counts = (sum(len(visit.y) for visit in parts[False]), sum(len(visit.y) for visit in parts[True]))
    return fitter.fit(
        aims or [Aim(SPEC, 0, some_weights(), QType.Q4_K)],
        lambda is_held_out: parts[is_held_out],
        counts,
        lambda _: IMPORTANCE,
        gap_of_inputs=gap_of_inputs,
    )


def seen(n: int, seed: int, gap: float = 0.0) -> Visit:
    y = inputs(n, seed)
    return Visit(y, gap * y.roll(1, 1))


def plain_blocks(aim: Aim) -> Array:
    return encode(aim.weights.numpy(), aim.qtype, Guide.of(IMPORTANCE))


def test_a_damping_is_chosen_where_it_does_good(workers: ThreadPoolExecutor) -> None:
    (one,) = fit(Fitter(FeedbackSettings(), "cpu", workers), [seen(500, 1), seen(500, 2)], [seen(200, 3)])
    assert one.fit.damping in DAMPINGS and one.fit.reason == ""
    assert (one.fit.n_token, one.fit.n_held_out) == (1000, 200)
    assert one.fit.ratio < 0.5
    y, plain = (
        inputs(500, 7),
        torch.from_numpy(decode(plain_blocks(Aim(SPEC, 0, some_weights(), QType.Q4_K)), QType.Q4_K, N)),
    )
    before, after = (
        float((y @ (values - some_weights()).T).square().sum()) for values in (plain, one.values)
    )
    assert after < 0.5 * before  # on tokens that nobody has seen
    assert torch.equal(one.values, torch.from_numpy(decode(one.blocks, QType.Q4_K, N)))


@pytest.mark.parametrize("gap_of_inputs", [False, True])
def test_what_the_stream_lacks_is_made_good(workers: ThreadPoolExecutor, gap_of_inputs: bool) -> None:
    weights = some_weights()

    def visit(n: int, seed: int) -> Visit:
        y = inputs(n, seed)
        gap = 0.2 * y
        return Visit(y, gap if gap_of_inputs else gap @ weights.T)

    fitter = Fitter(FeedbackSettings(), "cpu", workers)
    (one,) = fit(fitter, [visit(1500, 1)], [visit(200, 2)], gap_of_inputs=gap_of_inputs)
    y = inputs(400, 5)
    wanted = 1.2 * y @ weights.T
    assert float((y @ one.values.T - wanted).square().mean()) < 0.1 * float(
        (0.2 * y @ weights.T).square().mean()
    )
    assert one.fit.ratio < 0.1


def test_plain_is_kept_where_held_out_tokens_say_so(workers: ThreadPoolExecutor) -> None:
    """The gap of the fitted tokens is the opposite of that of the others: whatever is learnt of it is wrong."""
    aim = Aim(SPEC, 0, some_weights(), QType.Q4_K)
    (one,) = fit(Fitter(FeedbackSettings(), "cpu", workers), [seen(500, 1, 0.5)], [seen(200, 2, -0.5)], [aim])
    assert (one.fit.damping, one.fit.reason, one.fit.ratio) == (None, "held out", 1.0)
    assert np.array_equal(one.blocks, plain_blocks(aim))


@pytest.mark.parametrize(("n_fit", "n_held_out"), [(63, 200), (500, 31), (0, 0), (0, 40), (70, 0)])
def test_few_tokens_decide_nothing(workers: ThreadPoolExecutor, n_fit: int, n_held_out: int) -> None:
    aim = Aim(SPEC, 3, some_weights(), QType.Q5_K)
    (one,) = fit(Fitter(FeedbackSettings(), "cpu", workers), [seen(n_fit, 1)], [seen(n_held_out, 2)], [aim])
    assert (one.fit.damping, one.fit.reason, one.fit.xid) == (None, "few tokens", 3)
    assert (one.fit.n_token, one.fit.n_held_out) == (n_fit, n_held_out) and np.isnan(one.fit.ratio)
    assert np.array_equal(one.blocks, plain_blocks(aim))


def test_matrices_that_share_inputs_choose_each_for_itself(workers: ThreadPoolExecutor) -> None:
    """Types without parts aim at the same target, and are encoded plainly there."""
    specs = [TensorSpec(f"blk.0.attn_{name}.weight", (N_ROW, N), QType.BF16) for name in "qkv"]
    aims = [
        Aim(spec, 0, some_weights(seed), qtype)
        for seed, (spec, qtype) in enumerate(zip(specs, (QType.Q4_K, QType.Q8_0, QType.Q2_K), strict=True))
    ]
    found = fit(Fitter(FeedbackSettings(), "cpu", workers), [seen(1000, 1, 0.1)], [seen(200, 2, 0.1)], aims)
    assert [(one.fit.name, one.fit.qtype) for one in found] == [
        (spec.name, qtype) for spec, qtype in zip(specs, ("Q4_K", "Q8_0", "Q2_K"), strict=True)
    ]
    assert all(one.fit.damping is not None and one.fit.ratio < 0.7 for one in found)
    (alone,) = fit(
        Fitter(FeedbackSettings(), "cpu", workers), [seen(1000, 1, 0.1)], [seen(200, 2, 0.1)], aims[2:]
    )
    assert np.array_equal(alone.blocks, found[2].blocks)


def test_large_matrices_go_in_pieces(workers: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch) -> None:
    fitter = Fitter(FeedbackSettings(dampings=DAMPINGS[:1]), "cpu", workers)
    (whole,) = fit(fitter, [seen(500, 1)], [seen(100, 2)])
    monkeypatch.setattr(fitting, "PIECE_WEIGHTS", 10 * N)
    (pieces,) = fit(fitter, [seen(500, 1)], [seen(100, 2)])
    assert pieces.blocks.shape == whole.blocks.shape
    assert float((pieces.values - whole.values).square().mean()) < 1e-3
    assert pieces.fit.ratio == pytest.approx(whole.fit.ratio, rel=0.1)


def test_held_out_tokens_count_by_their_weights(workers: ThreadPoolExecutor) -> None:
    """Tokens of no weight judge nothing, however wrong they go."""
    good, bad = seen(100, 2, 0.5), seen(400, 3, -0.5)
    y, gap = torch.cat([good.y, bad.y]), torch.cat([good.gap, bad.gap])
    weights = torch.cat([torch.ones(100), torch.zeros(400)])
    fitter = Fitter(FeedbackSettings(), "cpu", workers)
    (one,) = fit(fitter, [seen(500, 1, 0.5)], [Visit(y, gap, weights)])
    assert one.fit.damping is not None and one.fit.ratio < 0.5


def test_many_held_out_tokens_are_thinned_out(
    workers: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fitting, "JUDGED", 50)
    held_out = fitting._HeldOut(170)
    for n in (1, 60, 0, 9, 100):
        held_out.keep(
            Visit(torch.arange(held_out.n_token, held_out.n_token + n).float()[:, None], torch.zeros(n, 1))
        )
    kept = torch.cat([visit.y for visit in held_out._visits])[:, 0].tolist()
    assert kept == list(range(0, 170, 4))
