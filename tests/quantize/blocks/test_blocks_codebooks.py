"""The formats whose groups of 8 weights have a code in a codebook: IQ2_XXS, IQ2_XS, IQ2_S."""

from __future__ import annotations

from collections.abc import Callable

import block_checks
import pytest

from quantize.tensors import QType

pytestmark = pytest.mark.numeric

QTYPES = [QType.IQ2_XXS, QType.IQ2_XS, QType.IQ2_S]


@pytest.mark.parametrize(
    "check", block_checks.CHECKS, ids=lambda check: check.__name__.removeprefix("check_")
)
@pytest.mark.parametrize("qtype", QTYPES, ids=lambda qtype: qtype.name)
def test_format(check: Callable[[QType], None], qtype: QType) -> None:
    check(qtype)


def test_plain_python() -> None:
    block_checks.check_without_jit(*QTYPES)
