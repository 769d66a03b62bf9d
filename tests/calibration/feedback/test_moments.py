"""Moments of inputs: their factor, and the target that they give, against numpy's own solutions."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from calibration.feedback.moments import Moments, Visit
from quantize.tensors import Array

pytestmark = pytest.mark.numeric

N, N_ROW, N_TOKEN = 24, 7, 300
ALL = torch.arange(N_ROW)


def visits(seed: int, *, of_inputs: bool, weighted: bool = False) -> tuple[Visit, Array, Array, Array]:
    """A visit, and its numbers in float64: y, gap, weights."""
    rng = np.random.default_rng(seed)
    y = rng.standard_normal((N_TOKEN, 5)) @ rng.standard_normal((5, N)) + rng.standard_normal((N_TOKEN, N))
    gap = 0.3 * y[:, : N if of_inputs else N_ROW] + 0.1 * rng.standard_normal(
        (N_TOKEN, N if of_inputs else N_ROW)
    )
    weights = rng.chisquare(1, N_TOKEN) if weighted else np.ones(N_TOKEN)
    told = torch.from_numpy(weights).float() if weighted else None
    visit = Visit(torch.from_numpy(y).float(), torch.from_numpy(gap).float(), told)
    exact = [np.asarray(part.astype(np.float32), np.float64) for part in (y, gap, weights)]
    return visit, exact[0], exact[1], exact[2]


def halves(visit: Visit) -> list[Visit]:
    cut = [slice(0, 100), slice(100, None)]
    weights = [None if visit.weights is None else visit.weights[part] for part in cut]
    return [Visit(visit.y[part], visit.gap[part], w) for part, w in zip(cut, weights, strict=True)]


@pytest.mark.parametrize("small", [5, 1024])
def test_the_factor_is_upper_triangular_and_its_square_the_inverse(
    small: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("calibration.feedback.moments.SMALL", small)
    moments = Moments(N, N, "cpu", of_inputs=True)
    visit, y, _, _ = visits(0, of_inputs=True)
    for half in halves(visit):
        moments.add(half)
    known = moments.damped(0.1).known
    squares = y.T @ y
    damped = squares + 0.1 * np.diag(squares).mean() * np.eye(N)
    np.testing.assert_allclose(known.moments, damped, rtol=1e-4, atol=1e-2)
    assert (np.tril(known.factor, -1) == 0).all()
    assert (np.diag(known.factor) > 0).all()
    factor = known.factor.astype(np.float64)
    np.testing.assert_allclose(factor.T @ factor @ damped, np.eye(N), atol=1e-3)
    np.testing.assert_allclose(known.importance, np.diag(squares) / np.diag(squares).mean(), rtol=1e-4)
    for array in (known.moments, known.factor, known.importance):
        assert array.dtype == np.float32


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("of_inputs", [False, True])
def test_targets_are_a_ridge_regression(of_inputs: bool, weighted: bool) -> None:
    """W* minimises Σ w |what the output lacks - (W* - W) y|² + damping |W* - W|², solved here by least squares."""
    visit, y, gap, weights = visits(1, of_inputs=of_inputs, weighted=weighted)
    moments = Moments(N, N if of_inputs else N_ROW, "cpu", of_inputs=of_inputs)
    for half in halves(visit):
        moments.add(half)
    matrix = np.random.default_rng(2).standard_normal((N_ROW, N)).astype(np.float32)
    target = moments.damped(0.2).target(torch.from_numpy(matrix), ALL)
    root = np.sqrt(weights)[:, None]
    ridge = 0.2 * np.mean((root * y) ** 2, axis=1).sum() * np.eye(N)
    lacking = gap @ matrix.T.astype(np.float64) if of_inputs else gap
    system = np.concatenate([root * y, np.sqrt(ridge)])
    wanted = np.concatenate([root * lacking, np.zeros((N, N_ROW))])
    solution = np.linalg.lstsq(system, wanted, rcond=None)[0].T
    np.testing.assert_allclose(target.numpy() - matrix, solution, rtol=2e-3, atol=2e-4)
    rows = torch.tensor([5, 0, 3])
    some = moments.damped(0.2).target(torch.from_numpy(matrix)[rows], rows)
    torch.testing.assert_close(some, target[rows])


def test_without_a_gap_the_weights_are_the_target() -> None:
    moments = Moments(N, N, "cpu", of_inputs=True)
    visit, *_ = visits(0, of_inputs=True)
    moments.add(Visit(visit.y, torch.zeros(N_TOKEN, N)))
    matrix = torch.randn(N_ROW, N, generator=torch.Generator().manual_seed(0))
    target = moments.damped(0.1).target(matrix, ALL)
    assert torch.equal(target, matrix)


def test_a_strong_damping_holds_the_target() -> None:
    visit, *_ = visits(1, of_inputs=True)
    moments = Moments(N, N, "cpu", of_inputs=True)
    moments.add(visit)
    matrix = torch.ones(N_ROW, N)
    apart = [
        float((moments.damped(damping).target(matrix, ALL) - matrix).square().sum())
        for damping in (0.01, 1, 100)
    ]
    assert apart[0] > apart[1] > 100 * apart[2] > 0


def test_no_token_at_all_leaves_something_that_can_be_solved() -> None:
    moments = Moments(N, N, "cpu", of_inputs=True)
    matrix = torch.ones(N_ROW, N)
    target = moments.damped(0.1).target(matrix, ALL)
    assert torch.equal(target, matrix)
    assert all(
        np.isfinite(part).all()
        for part in (moments.damped(0.1).known.moments, moments.damped(0.1).known.factor)
    )
    assert (moments.damped(0.1).known.importance == 1).all()
