"""Codes that error feedback has moved far are told from codes that were changed afterwards."""

from __future__ import annotations

import numpy as np
import pytest

from gguf_export.checking.codes import CODES, not_nearest
from gguf_export.checking.file_check import _stands_out
from gguf_export.checking.tolerances import tolerance
from quantize.blocks.parts import MOVABLE
from quantize.codec import decode
from quantize.feedback.encoder import FeedbackInput, encode_with_feedback
from quantize.tensors import Array, QType

pytestmark = pytest.mark.numeric

N_ROW, N = 384, 512


def awkward() -> tuple[Array, Array, FeedbackInput]:
    """Weights of heavy tails, in rows of very different size; a target beside them; inputs of which three are huge."""
    rng = np.random.default_rng(0)
    scale = np.exp(rng.standard_normal(N))
    scale[[5, 300, 400]] *= 60
    few = rng.standard_normal((2000, 40)) @ rng.standard_normal((40, N))
    x = (0.3 * few + rng.standard_normal((2000, N))) * scale
    weights = 0.02 * rng.standard_t(4, (N_ROW, N)) * np.exp(0.5 * rng.standard_normal(N_ROW))[:, None]
    weights[:, [5, 300]] *= 0.05
    weights[17] *= 1e-3
    moments = x.T @ x
    moments += 0.03 * np.diag(moments).mean() * np.eye(N)
    target = weights + 0.1 * np.abs(weights).mean() * rng.standard_normal((N_ROW, N))
    factor = np.linalg.cholesky(np.linalg.inv(moments)).T
    importance = np.diag(moments) / np.diag(moments).mean()
    told = FeedbackInput(*(part.astype(np.float32) for part in (moments, factor, importance)))
    return weights.astype(np.float32), target.astype(np.float32), told


def found(blocks: Array, weights: Array, qtype: QType) -> tuple[int, int]:
    """The blocks whose codes stand out, and those whose errors do."""
    wrong = not_nearest(blocks, weights, qtype, is_moved=True)
    assert wrong is not None
    errors = np.abs(decode(blocks, qtype, N) - weights).reshape(len(wrong), -1).max(axis=1)
    largest = np.abs(weights).reshape(len(wrong), -1).max(axis=1)
    beyond = _stands_out(errors, largest, tolerance(qtype).weight_with_importances)
    return int(wrong.sum()), int(beyond.sum())


@pytest.mark.parametrize("qtype", [qtype for qtype in MOVABLE if qtype in CODES])
def test_what_feedback_does_is_no_damage(qtype: QType) -> None:
    weights, target, told = awkward()
    blocks = encode_with_feedback(target, qtype, told, rounds=2)
    assert found(blocks, weights, qtype) == (0, 0)


def test_changed_codes_are_found_among_moved_ones() -> None:
    """The highest bits of two codes, in blocks whose other codes were moved, too."""
    weights, target, told = awkward()
    blocks = encode_with_feedback(target, QType.Q4_K, told, rounds=2)
    n_found = 0
    for row in range(0, N_ROW, 16):
        damaged = blocks.copy()
        damaged[row, 144 + CODES[QType.Q4_K].first + 27] ^= 0x88
        n_found += found(damaged, weights, QType.Q4_K)[0]
    assert n_found >= 12  # of 24: in sub-blocks of small weights even such a step is a small one
