"""The formats that search for a scale with signed codes: Q3_K, Q4_0, Q5_0, Q6_K."""

from __future__ import annotations

from collections.abc import Callable

import block_checks
import pytest

from quantize.tensors import QType

QTYPES = [QType.Q3_K, QType.Q4_0, QType.Q5_0, QType.Q6_K]
CHECKS = [
    block_checks.check_bytes,
    block_checks.check_trained_weights,
    block_checks.check_shapes,
    block_checks.check_sources,
    block_checks.check_decode,
    block_checks.check_golden,
    block_checks.check_properties,
]


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("qtype", QTYPES, ids=lambda qtype: qtype.name)
def test_check(qtype: QType, check: Callable[[QType], None]) -> None:
    check(qtype)


def test_without_jit() -> None:
    block_checks.check_without_jit(*QTYPES)
