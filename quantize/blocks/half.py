"""The two 16-bit floats, bit by bit: numba kernels know neither.

Branch-free, so that loops that call these functions stay vectorisable; no step overflows its type, so that
plain Python (`NUMBA_DISABLE_JIT=1`), where NumPy's scalars warn, gives the same bits in silence.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types
from numba.extending import overload

from quantize.blocks.jit import kernel
from quantize.tensors import Array

U16, I32, U32 = np.uint16, np.int32, np.uint32
F32 = np.float32

_HALF = F32(0.5)  # its last bit weighs 2^-24, the least half: adding it rounds a float32 to a subnormal half
_TINY = F32(2.0**-24)


@kernel
def f32_to_f16_bits(value: np.float32) -> np.uint16:
    """Round to the nearest half, ties to even; subnormals kept, overflow to infinity, NaN to 0x7E00.

    The bits of `ggml_compute_fp32_to_fp16` (ggml-impl.h).
    """
    bits = F32(value).view(I32)
    size = I32(bits & I32(0x7FFFFFFF))
    odd = I32(I32(size >> I32(13)) & I32(1))
    normal = I32(I32(I32(size - I32(0x38000000)) + I32(I32(0xFFF) + odd)) >> I32(13))
    normal = normal if normal < I32(0x7C00) else I32(0x7C00)
    least = I32(0x38800000)  # 2^-14, the least normal half
    below = size if size < least else least
    small = I32(F32(I32(below).view(F32) + _HALF).view(I32) - I32(0x3F000000))
    half = small if size < least else normal
    half = half if size <= I32(0x7F800000) else I32(0x7E00)
    return U16(half | I32(I32(bits >> I32(16)) & I32(0x8000)))


@kernel
def f16_bits_to_f32(half: np.uint16) -> np.float32:
    """The float32 of a half's bits, exactly; a NaN stays as it is, as in NumPy's cast."""
    bits = I32(half)
    size = I32(bits & I32(0x7FFF))
    small = F32(F32(size) * _TINY).view(I32)
    normal = I32(I32(size << I32(13)) + I32(0x38000000))
    large = I32(I32(size << I32(13)) + I32(0x70000000))
    value = small if size < I32(0x0400) else normal
    value = large if size >= I32(0x7C00) else value
    return I32(value | I32(I32(I32(bits >> I32(15)) & I32(1)) * I32(-0x80000000))).view(F32)


@kernel
def f32_to_bf16_bits(value: np.float32) -> np.uint16:
    """Round to the nearest bfloat16, ties to even; NaN is made quiet with bit 6.

    The bits of `ggml_compute_fp32_to_bf16` (ggml-impl.h).
    """
    bits = F32(value).view(I32)
    size = I32(bits & I32(0x7FFFFFFF))
    top = I32(I32(bits >> I32(16)) & I32(0xFFFF))
    low = I32(bits & I32(0xFFFF))
    up = I32(I32(low + I32(0x7FFF) + I32(top & I32(1))) >> I32(16))
    return U16(I32(top | I32(64)) if size > I32(0x7F800000) else I32(top + up))


@kernel
def bf16_bits_to_f32(bits: np.uint16) -> np.float32:
    """The float32 whose upper half these bits are."""
    return U32(U32(bits) << U32(16)).view(F32)


def as_f32(weight: Any) -> Any:
    """A weight as float32, whichever way a source hands it out: a uint16 holds the bits of a bfloat16.

    In compiled code the choice is made by type, at compile time.
    """
    return bf16_bits_to_f32(weight) if isinstance(weight, U16) else F32(weight)


@overload(as_f32)
def _as_f32(weight: Any) -> Any:
    def of_bf16(weight: Any) -> Any:
        return bf16_bits_to_f32(weight)

    def of_f32(weight: Any) -> Any:
        return F32(weight)

    return of_bf16 if isinstance(weight, types.Integer) else of_f32


@kernel
def load_f16(blocks: Array, at: int) -> np.float32:
    """Read the little-endian half in bytes `at` and `at + 1`."""
    return f16_bits_to_f32(U16(U16(blocks[at]) | U16(U16(blocks[at + 1]) << U16(8))))
