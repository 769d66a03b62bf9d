"""The formats of one or two bits without a search: Q1_0, Q2_0, TQ1_0, TQ2_0."""

from __future__ import annotations

from collections.abc import Callable

import block_checks
import ggml
import numpy as np
import pytest

from quantize.blocks import block_format
from quantize.codec import encode
from quantize.tensors import QType

pytestmark = pytest.mark.numeric

QTYPES = [QType.Q1_0, QType.Q2_0, QType.TQ1_0, QType.TQ2_0]


@pytest.mark.parametrize(
    "check", block_checks.CHECKS, ids=lambda check: check.__name__.removeprefix("check_")
)
@pytest.mark.parametrize("qtype", QTYPES, ids=lambda qtype: qtype.name)
def test_format(check: Callable[[QType], None], qtype: QType) -> None:
    check(qtype)


def test_plain_python() -> None:
    block_checks.check_without_jit(*QTYPES)


@pytest.mark.parametrize("qtype", QTYPES, ids=lambda qtype: qtype.name)
def test_around_the_middles(qtype: QType) -> None:
    """Half the scale, some steps below and above, and scales whose inverse overflows or nearly does."""
    ggml.require()
    size = block_format(qtype).block_size
    bits = np.float32(0.5).view(np.int32) + np.arange(-12, 13, dtype=np.int32)
    halves = np.concatenate([bits.view(np.float32), -bits.view(np.float32), [0.0, -0.0, 1.0, -1.0]])
    scales = np.concatenate([np.exp2(np.arange(-149, 128)), 3 * np.exp2(np.arange(-149, 126)), [1.1, 0.37]])
    weights = np.ones((len(scales), size), np.float32)
    weights[:, : len(halves)] = halves
    weights *= scales.astype(np.float32)[:, None]
    expected = ggml.encode(weights, qtype)
    block_checks.assert_same_blocks(encode(weights, qtype), expected, qtype, "around the middles")
