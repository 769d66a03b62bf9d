"""F32, F16, BF16 and Q8_0: the formats without a search."""

from __future__ import annotations

from collections.abc import Callable

import block_checks
import numpy as np
import pytest

from quantize.codec import encode
from quantize.tensors import QType

pytestmark = pytest.mark.numeric

QTYPES = [QType.F32, QType.F16, QType.BF16, QType.Q8_0]


@pytest.mark.parametrize(
    "check", block_checks.CHECKS, ids=lambda check: check.__name__.removeprefix("check_")
)
@pytest.mark.parametrize("qtype", QTYPES, ids=lambda qtype: qtype.name)
def test_format(check: Callable[[QType], None], qtype: QType) -> None:
    check(qtype)


def test_plain_python() -> None:
    block_checks.check_without_jit(*QTYPES)


def test_not_a_number() -> None:
    """What ggml's conversions make of a NaN: quiet, with its sign."""
    bits = np.array([[0x7F800001, 0xFFC12345, 0x7F800000, 0xFF800000]], np.uint32)
    weights = bits.view(np.float32)
    assert encode(weights, QType.F16).view(np.uint16).tolist() == [[0x7E00, 0xFE00, 0x7C00, 0xFC00]]
    assert encode(weights, QType.BF16).view(np.uint16).tolist() == [[0x7FC0, 0xFFC1, 0x7F80, 0xFF80]]
    assert encode(weights, QType.F32).view(np.uint32).tolist() == bits.tolist()
