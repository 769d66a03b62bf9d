"""A warm start: which types names stand for, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numba
import pytest

from quantize import warming
from quantize.blocks import WRITABLE
from quantize.blocks.jit import JIT
from quantize.exceptions import ChoiceError, OutputError, RecipeError
from quantize.recipes.ftypes import FTYPES
from quantize.tensors import QType


def test_names_are_of_tensor_types_and_file_types() -> None:
    assert warming.types_of([]) == WRITABLE
    assert warming.types_of(["q4_k"]) == (QType.Q4_K,)
    assert {QType.IQ2_XS, QType.IQ4_NL} <= set(warming.types_of(["IQ2_XS"]))  # the mix of that name, too
    mix = warming.types_of(["Q4_K_M"])
    assert {QType.Q4_K, QType.Q6_K, QType.Q5_K, QType.Q5_0, QType.Q8_0} <= set(mix)
    assert QType.Q3_K not in mix
    assert warming.types_of(["BF16"]) == (QType.F32, QType.F16, QType.BF16)
    assert set(mix) <= set(warming.types_of(["Q4_K_M", "Q2_K"]))


@pytest.mark.parametrize("ftype", FTYPES, ids=lambda ftype: ftype.name)
def test_a_file_type_has_no_type_that_cannot_be_written(ftype: object) -> None:
    assert getattr(ftype, "qtypes") <= set(WRITABLE)  # noqa: B009 - of the parameter nothing else is known


@pytest.mark.parametrize(
    ("name", "message"),
    [("Q4_Z", "unknown type 'Q4_Z'; known: "), ("Q8_K", "tensor type Q8_K cannot be written; known: ")],
)
def test_a_wrong_name_is_one_line(name: str, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        warming.warm([name])
    assert str(caught.value).startswith(message) and "known: F32, F16" in str(caught.value)


def test_another_folder_than_the_one_that_was_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not JIT:
        with pytest.raises(ChoiceError, match="nothing can be compiled"):
            warming.warm(["Q8_0"])
        return
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path / "named"))
    with pytest.raises(OutputError, match=r"named: no folder that can be written.*NUMBA_CACHE_DIR"):
        warming.warm(["Q8_0"])
