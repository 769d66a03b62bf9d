"""The formats with a scale and a min: Q4_K, Q5_K, Q2_K, Q4_1, Q5_1, each through the checks of all formats."""

from __future__ import annotations

from collections.abc import Callable

import block_checks
import pytest

from quantize.tensors import QType

pytestmark = pytest.mark.numeric

QTYPES = (QType.Q4_K, QType.Q5_K, QType.Q2_K, QType.Q4_1, QType.Q5_1)


@pytest.mark.parametrize(
    "check", block_checks.CHECKS, ids=lambda check: check.__name__.removeprefix("check_")
)
@pytest.mark.parametrize("qtype", QTYPES, ids=lambda qtype: qtype.name)
def test_format(check: Callable[[QType], None], qtype: QType) -> None:
    check(qtype)


def test_plain_python() -> None:
    block_checks.check_without_jit(*QTYPES)
