"""Blocks by error feedback: their errors cancel in the products with inputs, within the limits of the formats."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import pytest

from quantize.blocks.jit import JIT
from quantize.blocks.parts import MOVABLE, PartFormat, Parts, part_format
from quantize.codec import decode, encode
from quantize.exceptions import RecipeError
from quantize.feedback import moves
from quantize.feedback.compiling import compile_kernels
from quantize.feedback.encoder import FeedbackInput, encode_with_feedback
from quantize.guide import Guide
from quantize.telling import Progress
from quantize.tensors import Array, QType

pytestmark = pytest.mark.numeric

WIDTH = 512  # two blocks


def known(moments: Array, damping: float) -> FeedbackInput:
    """What the encoder is told of moments, worked out with numpy's inverse in float64."""
    diagonal = np.diag(moments)
    damped = moments.astype(np.float64) + damping * diagonal.mean() * np.eye(len(moments))
    lower = np.linalg.cholesky(np.linalg.inv(damped))
    importance = (diagonal / diagonal.mean()).astype(np.float32)
    return FeedbackInput(damped.astype(np.float32), lower.T.astype(np.float32), importance)


def correlated(n_token: int = 2048, seed: int = 0) -> Array:
    """Moments float32 [512, 512] of inputs of which a part lies in few directions, and some are large."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n_token, WIDTH)) + 2 * rng.standard_normal((n_token, 16)) @ (
        rng.standard_normal((16, WIDTH))
    )
    x *= np.exp(0.5 * rng.standard_normal(WIDTH))
    return np.asarray(x.T @ x / n_token, np.float32)


def some_weights(n_row: int = 24, seed: int = 1) -> Array:
    return np.random.default_rng(seed).standard_normal((n_row, WIDTH)).astype(np.float32)


def error_of(blocks: Array, qtype: QType, weights: Array, moments: Array) -> float:
    """tr((W - Q) H (W - Q)ᵀ)."""
    apart = weights.astype(np.float64) - decode(blocks, qtype, weights.shape[1])
    return float(((apart @ moments) * apart).sum())


def plain(weights: Array, qtype: QType, told: FeedbackInput) -> Array:
    return encode(weights, qtype, Guide(told.importance))


def form_of(qtype: QType) -> PartFormat:
    form = part_format(qtype)
    assert form is not None
    return form


def parts_of(blocks: Array, form: PartFormat) -> Parts:
    return form.split(np.ascontiguousarray(blocks).reshape(-1, form.type_size))


@pytest.mark.parametrize("qtype", MOVABLE)
def test_each_round_lowers_the_error_that_feedback_leaves(qtype: QType) -> None:
    moments, weights = correlated(), some_weights()
    told = known(moments, 0.01)
    before = error_of(plain(weights, qtype, told), qtype, weights, told.moments)
    made = [encode_with_feedback(weights, qtype, told, rounds=n) for n in range(5)]
    errors = [error_of(blocks, qtype, weights, told.moments) for blocks in made]
    assert errors[0] < 0.7 * before
    assert all(later <= earlier * (1 + 1e-4) for earlier, later in pairwise(errors)), errors
    assert errors[-1] < 0.85 * errors[0]
    assert made[-1].shape == (24, WIDTH // form_of(qtype).block_size * form_of(qtype).type_size)


@pytest.mark.parametrize("qtype", MOVABLE)
def test_parts_stay_within_their_formats(qtype: QType) -> None:
    form, moments = form_of(qtype), correlated()
    wild = some_weights() * np.float32(10) ** np.linspace(-4, 4, 24, dtype=np.float32)[:, None]
    blocks = encode_with_feedback(wild, qtype, known(moments, 0.01), rounds=4)
    parts = parts_of(blocks, form)
    assert parts.codes.max() < len(form.levels)
    assert form.least_scale <= parts.scales.min() and parts.scales.max() <= form.most_scale
    assert parts.mins.min() >= 0 and parts.mins.max() <= form.most_min
    assert np.isfinite(parts.factors).all()
    assert np.array_equal(form.join(parts).reshape(len(blocks), -1), blocks)


@pytest.mark.parametrize("qtype", MOVABLE)
def test_threads_make_the_same_blocks(qtype: QType) -> None:
    weights, told = some_weights(600), known(correlated(), 0.03)
    with ThreadPoolExecutor(1) as one, ThreadPoolExecutor(3) as workers:
        alone = encode_with_feedback(weights, qtype, told, rounds=1, workers=one)
        assert np.array_equal(encode_with_feedback(weights, qtype, told, rounds=1, workers=workers), alone)
    few = encode_with_feedback(weights[:5], qtype, told, rounds=1)
    apart = decode(few, qtype, WIDTH) - decode(alone[:5], qtype, WIDTH)
    # Products of fewer rows are summed in another order, by which single codes are rounded to the other side.
    assert np.square(apart).mean() < 0.01


AWKWARD: dict[str, Callable[[Array], Array]] = {
    "zero": np.zeros_like,
    "zero rows": lambda w: w * (np.arange(len(w)) % 3 > 0)[:, None],
    "zero columns": lambda w: w * (np.arange(w.shape[1]) % 7 > 0),
    "zero blocks": lambda w: w * (np.arange(w.shape[1]) < 256),
    "constant": np.ones_like,
    "negative": lambda w: -np.abs(w) - 1,
    "huge": lambda w: w * np.float32(1e30),
    "large": lambda w: w * np.float32(1e5),
    "small": lambda w: w * np.float32(1e-6),
    "tiny": lambda w: w * np.float32(1e-30),
    "one": lambda w: np.where(np.arange(w.shape[1]) == 300, w, 0),
}


@pytest.mark.parametrize("qtype", MOVABLE)
def test_awkward_weights_become_blocks_that_can_be_read(qtype: QType) -> None:
    """Where the plain encoding is finite, this is, too, and not worse by more than rounding explains."""
    told = known(correlated(), 0.03)
    for name, change in AWKWARD.items():
        weights = change(some_weights(16)).astype(np.float32)
        usual = plain(weights, qtype, told)
        if not np.isfinite(decode(usual, qtype, WIDTH)).all():
            continue  # beyond the halves of the format, whoever encodes
        blocks = encode_with_feedback(weights, qtype, told, rounds=2)
        assert np.isfinite(decode(blocks, qtype, WIDTH)).all(), name
        before, after = (error_of(one, qtype, weights, told.moments) for one in (usual, blocks))
        energy = error_of(np.zeros_like(usual), qtype, weights, told.moments)
        assert after <= before * 1.001 + 1e-6 * energy, (name, before, after)


@pytest.mark.parametrize("qtype", MOVABLE)
@pytest.mark.parametrize("damping", [1e-4, 1e-2])
def test_moments_of_few_tokens_are_endured(qtype: QType, damping: float) -> None:
    """Of five tokens in 512 dimensions all but five directions are known by the damping alone."""
    weights, told = some_weights(16), known(correlated(5), damping)
    blocks = encode_with_feedback(weights, qtype, told, rounds=2)
    assert np.isfinite(decode(blocks, qtype, WIDTH)).all()
    usual = error_of(plain(weights, qtype, told), qtype, weights, told.moments)
    assert error_of(blocks, qtype, weights, told.moments) < usual


@pytest.mark.parametrize("qtype", MOVABLE)
def test_inputs_that_are_always_zero(qtype: QType) -> None:
    x = np.random.default_rng(3).standard_normal((600, WIDTH)).astype(np.float32)
    x[:, ::2] = 0
    weights, told = some_weights(16), known(x.T @ x, 1e-4)
    blocks = encode_with_feedback(weights, qtype, told, rounds=2)
    assert np.isfinite(decode(blocks, qtype, WIDTH)).all()


@pytest.mark.parametrize("qtype", MOVABLE)
def test_inputs_without_correlation_leave_nothing_to_win_and_nothing_to_lose(qtype: QType) -> None:
    weights = some_weights(32)
    told = known(np.eye(WIDTH, dtype=np.float32), 0.0)
    usual = error_of(plain(weights, qtype, told), qtype, weights, told.moments)
    first = error_of(encode_with_feedback(weights, qtype, told, rounds=0), qtype, weights, told.moments)
    assert (
        first < 1.002 * usual
    )  # Q4_0 and Q5_0 are fitted by the mean square of the whole row, or of a block
    after = error_of(encode_with_feedback(weights, qtype, told), qtype, weights, told.moments)
    least = 0.2 if qtype is QType.Q2_0 else 0.5  # ggml's scale of Q2_0 leaves most weights at 0
    assert least * usual < after <= usual


def test_types_without_parts_are_refused() -> None:
    told = known(np.eye(WIDTH, dtype=np.float32), 0.0)
    for qtype in (QType.Q4_1, QType.IQ3_S, QType.F16, QType.MXFP4):
        assert part_format(qtype) is None
        with pytest.raises(RecipeError, match=qtype.name):
            encode_with_feedback(some_weights(1), qtype, told)
    with pytest.raises(RecipeError, match="rows of 320 weights"):
        encode_with_feedback(some_weights(1)[:, :320], QType.Q4_K, told)


def test_kernels_are_compiled_as_they_will_be_used() -> None:
    """No signature is left for the first matrix, and it is said what takes so long."""
    kernels = [moves.move_codes, moves.move_scales, moves.push_errors, moves.values_of]
    kernels += [getattr(form_of(QType.Q4_K), name) for name in ("split_kernel", "join_kernel")]
    moments: list[Progress] = []
    compile_kernels([QType.Q4_K, QType.Q4_1, QType.Q4_K], moments.append)
    assert {moment.stage for moment in moments} == {"compiling kernels"}
    assert moments[-1].done == moments[-1].total
    if not JIT:
        return
    before = [len(kernel.signatures) for kernel in kernels]  # type: ignore[attr-defined]
    with ThreadPoolExecutor(2) as workers:
        told = known(np.eye(WIDTH, dtype=np.float32), 0.0)
        encode_with_feedback(some_weights(130), QType.Q4_K, told, workers=workers)
    assert [len(kernel.signatures) for kernel in kernels] == before  # type: ignore[attr-defined]


PLAIN_PYTHON = """
import hashlib
import numpy as np
from quantize.feedback.encoder import FeedbackInput, encode_with_feedback
from quantize.tensors import QType
rng = np.random.default_rng(0)
x = rng.standard_normal((300, 16)) @ rng.standard_normal((16, 256)) + rng.standard_normal((300, 256))
moments = np.round(x.T @ x)
factor = np.linalg.cholesky(np.linalg.inv(moments)).T.astype(np.float32)
told = FeedbackInput(moments.astype(np.float32), factor, np.ones(256, np.float32))
weights = rng.standard_normal((1, 256)).astype(np.float32)
for qtype in (QType.Q4_K, QType.Q6_K):
    print(hashlib.sha256(encode_with_feedback(weights, qtype, told, rounds=1)).hexdigest())
"""


def test_kernels_are_the_same_as_plain_python() -> None:
    """Compiled code may fuse nothing and reorder nothing, so that both make the same blocks."""
    answers = [
        subprocess.run(
            [sys.executable, "-c", PLAIN_PYTHON],
            env={**os.environ, "NUMBA_DISABLE_JIT": disabled},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for disabled in ("0", "1")
    ]
    assert answers[0].count("\n") == 2
    assert answers[0] == answers[1]
