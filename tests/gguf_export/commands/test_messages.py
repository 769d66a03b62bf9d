"""What the library tells by way of Python's warnings becomes a line like all others."""

from __future__ import annotations

import warnings

import pytest

from gguf_export.commands.messages import saying_warnings
from quantize.telling import Remark, RemarkWarning


@pytest.mark.filterwarnings("always")
def test_a_remark_that_comes_as_a_warning_is_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    remark = Remark("/cache\x1b", "is damaged", "give {setting}", "pre")
    with pytest.warns(UserWarning) as passed_on, saying_warnings():
        warnings.warn(RemarkWarning(remark), stacklevel=1)
        warnings.warn("a stranger's", UserWarning, stacklevel=1)
    assert capsys.readouterr().err == "/cache\\x1b: is damaged; give --pre\n"
    assert [str(one.message) for one in passed_on] == ["a stranger's"]
