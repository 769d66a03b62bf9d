"""ggml's arithmetic for one lane of a tile (see `tiles`), in forms that LLVM vectorises across the lanes.

Constants are np.float32 and np.int32, so that neither numba nor NumPy widens (the source also runs as plain Python).
"""

from __future__ import annotations

import numpy as np

from quantize.blocks.half import f16_bits_to_f32, f32_to_f16_bits
from quantize.blocks.jit import inlined, kernel

ZERO, ONE, HALF = np.float32(0), np.float32(1), np.float32(0.5)
MAGIC = np.float32(12582912.0)  # 1.5 * 2^23: adding it leaves the nearest integer in the low bits
MAGIC_FIELD, MAGIC_EXPONENT = np.int32(0x007FFFFF), np.int32(0x4B000000)
BYTE = np.int32(255)


@inlined
def nearest_int(v: np.float32) -> np.float32:
    """ggml's `nearest_int`, as a float: half to even for |v| < 2^22, the same wrapped values beyond, 0 for NaN."""
    field = np.int32(np.float32(v + MAGIC).view(np.int32) & MAGIC_FIELD)
    return np.float32(np.int32(field | MAGIC_EXPONENT).view(np.float32) - MAGIC)


@inlined
def nearest_code(v: np.float32, low: np.float32, high: np.float32) -> np.float32:
    """`nearest_int` clipped to low..high; clipped as integers, which keeps the float units free for the sums."""
    least, most = np.float32(low + MAGIC).view(np.int32), np.float32(high + MAGIC).view(np.int32)
    bits = np.int32(np.int32(np.float32(v + MAGIC).view(np.int32) & MAGIC_FIELD) | MAGIC_EXPONENT)
    bits = bits if bits > least else least
    bits = bits if bits < most else most
    return np.float32(np.int32(bits).view(np.float32) - MAGIC)


@inlined
def clipped_code(v: np.float32, high: np.float32) -> np.float32:
    """v clipped to 0..high, then rounded half to even; the same as `nearest_code` wherever that does not wrap."""
    code = v + MAGIC
    code = code if code > MAGIC else MAGIC  # NaN too
    bits, most = np.float32(code).view(np.int32), np.float32(high + MAGIC).view(np.int32)
    bits = bits if bits < most else most
    return np.float32(np.int32(bits).view(np.float32) - MAGIC)


@inlined
def clipped_small(v: np.float32, low: np.float32, high: np.float32) -> np.float32:
    """`nearest_code` of |v| < 2^21, for which `nearest_int` does not wrap."""
    code = (v + MAGIC) - MAGIC
    code = code if code > low else low
    return code if code < high else high


@inlined
def as_byte(v: np.float32) -> np.float32:
    """An integer as C stores it in a uint8_t: modulo 256."""
    return np.float32(np.int32(np.int32(v) & BYTE))


@kernel
def rounded_to_half(v: np.float32) -> np.float32:
    """The value that float16 keeps of v."""
    return f16_bits_to_f32(f32_to_f16_bits(v))
