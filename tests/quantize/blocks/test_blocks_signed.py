"""The formats that search for a scale with signed codes: Q3_K, Q4_0, Q5_0, Q6_K."""

from __future__ import annotations

from collections.abc import Callable

import block_checks
import pytest

from quantize.tensors import QType

pytestmark = pytest.mark.numeric

QTYPES = [QType.Q3_K, QType.Q4_0, QType.Q5_0, QType.Q6_K]


@pytest.mark.parametrize(
    "check", block_checks.CHECKS, ids=lambda check: check.__name__.removeprefix("check_")
)
@pytest.mark.parametrize("qtype", QTYPES, ids=lambda qtype: qtype.name)
def test_format(check: Callable[[QType], None], qtype: QType) -> None:
    check(qtype)


def test_plain_python() -> None:
    block_checks.check_without_jit(*QTYPES)
