"""The formats whose codes are indices of a table: IQ4_NL, IQ4_XS, MXFP4, NVFP4."""

from __future__ import annotations

from collections.abc import Callable

import block_checks
import ggml
import numpy as np
import pytest
from numba import njit

from quantize.blocks.iq4 import INTEGERS, nearest_index, nearest_value
from quantize.codec import encode
from quantize.tensors import Array, QType

pytestmark = pytest.mark.numeric

QTYPES = [QType.IQ4_NL, QType.IQ4_XS, QType.MXFP4, QType.NVFP4]


@pytest.mark.parametrize(
    "check", block_checks.CHECKS, ids=lambda check: check.__name__.removeprefix("check_")
)
@pytest.mark.parametrize("qtype", QTYPES, ids=lambda qtype: qtype.name)
def test_format(check: Callable[[QType], None], qtype: QType) -> None:
    check(qtype)


def test_plain_python() -> None:
    block_checks.check_without_jit(*QTYPES)


@njit()
def indices(values: Array, codes: Array, nearest: Array) -> None:
    for i in range(values.size):
        codes[i] = nearest_index(values[i])
        nearest[i] = nearest_value(values[i])


def near(points: Array, n_steps: int) -> Array:
    """The float32 values around each point, n_steps to either side."""
    bits = np.asarray(points, np.float32).view(np.int32)
    return (bits[:, None] + np.arange(-n_steps, n_steps + 1, dtype=np.int32)).view(np.float32).reshape(-1)


def test_nearest_index_by_comparing_distances_in_float32() -> None:
    """Around all table values and all middles, where rounding could matter, and over the whole range."""
    table = np.array(INTEGERS, np.float32)
    middles = (table[1:] + table[:-1]) / 2
    rng = np.random.default_rng(0)
    values = np.concatenate(
        [
            near(table, 50),
            near(middles, 1000),
            rng.uniform(-140, 130, 50_000),
            [0, -0.0, 1e-40, 3e38, -3e38, np.inf],
        ]
    ).astype(np.float32)
    upper = np.clip(np.searchsorted(table, values, side="right"), 1, 15)
    with np.errstate(over="ignore", invalid="ignore"):
        lower_is_nearer = values - table[upper - 1] < table[upper] - values
    expected = np.where(lower_is_nearer, upper - 1, upper)
    expected = np.where(values <= table[0], 0, np.where(values >= table[15], 15, expected))
    codes, nearest = np.empty(values.size, np.int32), np.empty(values.size, np.float32)
    indices(values, codes, nearest)
    np.testing.assert_array_equal(codes, expected)
    np.testing.assert_array_equal(nearest, table[expected])
    assert nearest_index(np.float32(np.nan)) == 15


def test_mxfp4_where_log2f_rounds_up() -> None:
    """The largest magnitude just below and above every power of two, subnormal ones included."""
    ggml.require()
    largest = near(np.exp2(np.arange(-126, 128)), 100)
    subnormal = near(np.exp2(np.arange(-140, -126)), 200)
    largest = np.concatenate(
        [largest, np.abs(subnormal), np.arange(1, 600).astype(np.int32).view(np.float32)]
    )
    weights = largest[:, None] * np.linspace(-1, 1, 32, dtype=np.float32)
    block_checks.assert_same_blocks(
        encode(weights, QType.MXFP4), ggml.encode(weights, QType.MXFP4), QType.MXFP4, "around powers of two"
    )


def test_mxfp4_around_the_middles() -> None:
    """Where two values of the table are equally near, and one step beside."""
    ggml.require()
    middles = np.array([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5], np.float32)
    scales = np.exp2(np.arange(-126, 126, dtype=np.float32))[:, None]
    weights = np.zeros((2 * len(scales), 32), np.float32)
    weights[:, 0] = 4 * np.concatenate([scales, scales])[:, 0]
    weights[:, 1:22] = np.concatenate([scales * near(middles, 1), -scales * near(middles, 1)])
    block_checks.assert_same_blocks(
        encode(weights, QType.MXFP4), ggml.encode(weights, QType.MXFP4), QType.MXFP4, "around the middles"
    )


def test_nvfp4_around_the_steps_of_scales() -> None:
    """The largest magnitude where the scale's code changes, subnormal and too large scales included."""
    ggml.require()
    steps = (8 + np.arange(0, 8, 0.5)) / 8 * np.exp2(np.arange(-12, 12))[:, None]
    subnormal = np.arange(0, 20, 0.5) * 2.0**-10
    largest = np.abs(near(6 * np.concatenate([steps.reshape(-1), subnormal]), 40))
    weights = largest[: len(largest) // 4 * 4, None] * np.linspace(-1, 1, 16, dtype=np.float32)
    weights = np.ascontiguousarray(weights.reshape(-1, 64))
    block_checks.assert_same_blocks(
        encode(weights, QType.NVFP4), ggml.encode(weights, QType.NVFP4), QType.NVFP4, "around steps of scales"
    )


def test_nvfp4_around_the_middles() -> None:
    """Where two values of the table are equally near, and one step beside, for each scale."""
    ggml.require()
    middles = near(np.array([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5]), 1)
    scales = np.concatenate(
        [np.arange(1, 8) * 2.0**-9, [(8 + m) * 2.0**e for e in range(-9, 6) for m in range(8)]]
    )
    weights = np.empty((len(scales), 4, 16))  # 42 values in three sub-blocks
    weights[:, :, 0] = 6
    weights[:, :3, 1:15] = np.concatenate([middles, -middles]).reshape(3, 14)
    weights[:, 3, 1:15] = 0
    weights[:, :, 15] = -6
    weights = np.ascontiguousarray((weights * scales[:, None, None]).reshape(-1, 64), np.float32)
    block_checks.assert_same_blocks(
        encode(weights, QType.NVFP4), ggml.encode(weights, QType.NVFP4), QType.NVFP4, "around the middles"
    )


def test_nvfp4_of_weights_beyond_the_largest_scale() -> None:
    """Where the distances to several values of the table round to the same float32, the first of them is taken."""
    ggml.require()
    rng = np.random.default_rng(0)
    weights = np.exp2(rng.uniform(10, 60, (200, 64))) * rng.choice([-1, 1], (200, 64))
    weights = np.concatenate([weights, weights[:, :1] * rng.uniform(-1, 1, (200, 64))]).astype(np.float32)
    ours = encode(weights, QType.NVFP4)
    block_checks.assert_same_blocks(ours, ggml.encode(weights, QType.NVFP4), QType.NVFP4, "too large")
    assert len(np.unique(ours[:, 4:] & 7)) == 8
