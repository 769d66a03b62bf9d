"""The rounding of activations in llama.cpp's CPU kernels, so that figures are those that llama.cpp gives for a file.

A product of activations with quantized weights is done in integers: the activations are rounded to 8 bits first, in
blocks of 256 (`Q8_K`, for the types whose blocks have 256 weights) or of 32 (`Q8_0`, `Q8_1`, for the others).
With float weights of 16 bits they are rounded to the type of the weights. ggml/src/ggml-cpu/ggml-cpu.c lists the type
for each weight type (`vec_dot_type`); the roundings are quantize_row_q8_K_ref (ggml-quants.c) and quantize_row_q8_0 of
x86 (ggml-cpu/arch/x86/quants.c), whose repacked variants give the same values. Keys and values lie in a cache of
float16 (common.h: cache_type_k, cache_type_v), from which flash attention takes them back to float32; queries stay
float32 there (ggml-cpu/ops.cpp: ggml_compute_forward_flash_attn_ext_tiled).

So each product, and attention, finds what llama.cpp's kernel finds for the same input, but for the order of additions
in float32. One rounding is not imitated: Q8_1 keeps the sum of a block in float16, with which the minima of Q4_1 and
Q5_1 are multiplied; it adds 2 to 8 % to the mean square of what the codes cost.

The order of additions decides more than its own error: a value that is next to the middle between two codes falls to
the other side. Where values are a part p of a code's width apart, a part p of the codes differs by a whole width, and
the next values are apart by about the root of p of one: 1e-5 is a half behind four roundings. So no two builds of
llama.cpp find the same figures, and these are as far from one of them as it is from another (docs/measured.md).
"""

from __future__ import annotations

import weakref
from collections.abc import Callable

from torch import Tensor

from quantize.tensors import QType, TensorSpec

__all__ = ["InputRounding", "round_f16", "round_q8_0", "round_q8_k"]

LARGE, SMALL = 256, 32  # activations per block
TINY = 1e-36  # below it 127 / x overflows; such blocks are zeros here


def round_q8_k(x: Tensor) -> Tensor:
    """x f32 [t, n], n a multiple of 256, as Q8_K holds it; a block of zeros stays."""
    blocks = x.reshape(*x.shape[:-1], -1, LARGE)
    highest = blocks.abs().amax(dim=-1, keepdim=True)
    iscale = _over(127.0, highest)
    rounded: Tensor = (blocks * iscale).round_().mul_(_over(1.0, iscale))
    return rounded.masked_fill_(highest < TINY, 0.0).flatten(-2)


def round_q8_0(x: Tensor) -> Tensor:
    """x f32 [t, n], n a multiple of 32, as Q8_0 holds it: codes of 8 bits, a scale in float16."""
    blocks = x.reshape(*x.shape[:-1], -1, SMALL)
    highest = blocks.abs().amax(dim=-1, keepdim=True)
    rounded: Tensor = (blocks * _over(127.0, highest)).round_().mul_((highest / 127.0).half().float())
    return rounded.masked_fill_(highest < TINY, 0.0).flatten(-2)


def _over(number: float, x: Tensor) -> Tensor:
    """number / x with one rounding; torch's `number / x` multiplies by the reciprocal."""
    return x.new_tensor(number).div(x)


def round_f16(x: Tensor) -> Tensor:
    """x as float16 holds it."""
    return x.half().float()


def round_bf16(x: Tensor) -> Tensor:
    """x as bfloat16 holds it."""
    return x.bfloat16().float()


def rounding_for(qtype: QType) -> Callable[[Tensor], Tensor] | None:
    """The rounding of the input of a product with weights of this type; None where there is none, as with F32."""
    if qtype == QType.F32:
        return None
    if qtype == QType.F16:
        return round_f16
    if qtype == QType.BF16:
        return round_bf16
    return round_q8_k if qtype.block_size == LARGE else round_q8_0


class InputRounding:
    """`Stream.round_inputs`: rounds the input of each product as the type of the weights asks.

    Matrices with a common input come one after the other, so the last rounded input is kept as long as the input is.
    `stored` gives the type in which a GGUF file would hold a tensor, where the source holds it in another type (the
    router of a checkpoint).
    """

    def __init__(self, stored: Callable[[TensorSpec], QType] = lambda spec: spec.qtype) -> None:
        self._stored = stored
        self._last: tuple[weakref.ref[Tensor], Callable[[Tensor], Tensor], Tensor] | None = None

    def __call__(self, spec: TensorSpec, x: Tensor) -> Tensor:
        """The input x [t, n_per_row] of the matrix, rounded."""
        rounding = rounding_for(self._stored(spec))
        if rounding is None:
            return x
        if self._last is not None and self._last[0]() is x and self._last[1] is rounding:
            return self._last[2]
        rounded = rounding(x.float()).to(x.dtype)
        self._last = (weakref.ref(x, self._forget), rounding, rounded)
        return rounded

    def _forget(self, gone: weakref.ref[Tensor]) -> None:
        """Free the rounded input when its input is gone."""
        if self._last is not None and self._last[0] is gone:
            self._last = None
