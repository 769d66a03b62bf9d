"""Weights that are no numbers are refused, and their place is named."""

from __future__ import annotations

import numpy as np
import pytest

from quantize.exceptions import NotFiniteError
from quantize.finite import refuse_non_finite
from quantize.tensors import QType, TensorSpec

DOWN = TensorSpec("blk.1.ffn_down_exps.weight", (4, 8, 6), QType.BF16)
NORM = TensorSpec("output_norm.weight", (6,), QType.F32)


@pytest.mark.parametrize("value", [0x7FC0, 0x7F80, 0xFF80])  # NaN and the infinities, as bfloat16
def test_the_first_such_weight_is_named_by_its_place_in_the_matrix(value: int) -> None:
    weights = np.zeros((3, 6), np.uint16)
    weights[1, 4] = weights[2, 0] = value
    with pytest.raises(NotFiniteError) as caught:
        refuse_non_finite(DOWN, 3, (5, 8), weights)
    error = caught.value
    assert (error.place, error.message) == (
        "blk.1.ffn_down_exps.weight, expert 3",
        "row 6, column 4 is not a finite number",
    )
    assert error.remedy.startswith("the checkpoint is damaged")


def test_a_vector_is_one_row() -> None:
    weights = np.array([[0, 0, np.inf, 0, 0, 0]], np.float32)
    with pytest.raises(NotFiniteError, match=r"^output_norm\.weight: row 0, column 2 is not"):
        refuse_non_finite(NORM, 0, (0, 1), weights)


def test_large_numbers_are_numbers() -> None:
    refuse_non_finite(NORM, 0, (0, 1), np.full((1, 6), np.finfo(np.float32).max, np.float32))
    refuse_non_finite(DOWN, 0, (0, 1), np.full((1, 6), 0x7F7F, np.uint16))
