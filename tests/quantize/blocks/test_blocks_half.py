"""The 16-bit floats against NumPy's casts: every half, every bfloat16, and float32 where rounding is hard."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numba import njit

from quantize.blocks.half import bf16_bits_to_f32, f16_bits_to_f32, f32_to_bf16_bits, f32_to_f16_bits
from quantize.tensors import Array

pytestmark = pytest.mark.numeric

ALL_16 = np.arange(1 << 16, dtype=np.uint32).astype(np.uint16)


def over(function: Callable[..., np.generic]) -> Callable[[Array, Array], None]:
    @njit()
    def loop(source: Array, out: Array) -> None:
        for i in range(source.size):
            out[i] = function(source[i])

    return loop


def hard_floats() -> Array:
    """Random bits, and the neighbours of every half and of every point between two halves."""
    rng = np.random.default_rng(1)
    halves = ALL_16[(ALL_16 & 0x7FFF) <= 0x7C00].view(np.float16).astype(np.float32).view(np.uint32)
    between = halves + np.uint32(1 << 12)
    small = ((np.arange(2048) * 0.5) * 2.0**-24).astype(np.float32).view(np.uint32)
    near = [b + np.uint32(step) for b in (halves, between, small) for step in (0, 1)]
    near += [b - np.uint32(step) for b in (between, small[1:]) for step in (1, 2)]
    bits = np.concatenate([rng.integers(0, 1 << 32, 200_000, np.uint32), *near])
    return bits.astype(np.uint32).view(np.float32)


def test_every_half_to_f32() -> None:
    out = np.empty(ALL_16.size, np.float32)
    over(f16_bits_to_f32)(ALL_16, out)
    with np.errstate(invalid="ignore"):
        expected = ALL_16.view(np.float16).astype(np.float32)
    np.testing.assert_array_equal(out.view(np.uint32), expected.view(np.uint32))


def test_every_bf16_to_f32_and_back() -> None:
    out = np.empty(ALL_16.size, np.float32)
    over(bf16_bits_to_f32)(ALL_16, out)
    np.testing.assert_array_equal(out.view(np.uint32), ALL_16.astype(np.uint32) << 16)
    back = np.empty_like(ALL_16)
    over(f32_to_bf16_bits)(out, back)
    expected = np.where(np.isnan(out), ALL_16 | 64, ALL_16)
    np.testing.assert_array_equal(back, expected)


def test_f32_to_half_rounds_as_numpy() -> None:
    values = hard_floats()
    out = np.empty(values.size, np.uint16)
    over(f32_to_f16_bits)(values, out)
    with np.errstate(all="ignore"):
        expected = values.astype(np.float16).view(np.uint16)
    sign = (values.view(np.uint32) >> 16).astype(np.uint16) & np.uint16(0x8000)
    expected = np.where(np.isnan(values), sign | np.uint16(0x7E00), expected)
    np.testing.assert_array_equal(out, expected)


def test_f32_to_bf16_rounds_to_even() -> None:
    values = hard_floats()
    out = np.empty(values.size, np.uint16)
    over(f32_to_bf16_bits)(values, out)
    bits = values.view(np.uint32).astype(np.uint64)
    expected = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    expected = np.where(np.isnan(values), (bits >> 16) | 64, expected).astype(np.uint16)
    np.testing.assert_array_equal(out, expected)


@given(st.integers(0, (1 << 32) - 1))
@pytest.mark.parametrize("function", [f32_to_f16_bits, f32_to_bf16_bits])
def test_plain_python_gives_the_same_bits(function: Callable[..., np.generic], bits: int) -> None:
    value = np.uint32(bits).view(np.float32)
    plain = getattr(function, "py_func", function)
    assert int(plain(value)) == int(function(value))


@given(st.integers(0, (1 << 16) - 1))
@pytest.mark.parametrize("function", [f16_bits_to_f32, bf16_bits_to_f32])
def test_plain_python_gives_the_same_float(function: Callable[..., np.generic], bits: int) -> None:
    plain = getattr(function, "py_func", function)
    a, b = np.float32(plain(np.uint16(bits))), np.float32(function(np.uint16(bits)))
    assert a.view(np.uint32) == b.view(np.uint32) or (np.isnan(a) and np.isnan(b))
