"""Decoders of the types whose codes stand for groups of weights: IQ1 to IQ3.

Each takes blocks uint8 [n, type_size] to f32 [n, 256], in the order of operations of the module of the same name in
`quantize.blocks`. The signs of eight weights are taken from a table of factors, 1 or -1.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from calibration.decoders.bits import halves, interleaved, looked_up, table_on, words
from quantize.blocks.codebook import codebook
from quantize.blocks.iq1_entries import entry_levels
from quantize.blocks.iq2_blocks import entries
from quantize.blocks.iq3_blocks import sign_factors
from quantize.blocks.iq3_xxs import LEVELS
from quantize.tensors import Array, QType

DELTA = 0.125  # by which the levels of IQ1 are shifted


def iq2_xxs(blocks: Tensor) -> Tensor:
    """Eight sub-blocks of 32: four codes, then a word of four times seven signs and a scale."""
    parts = blocks[:, 2:].reshape(-1, 8, 8)
    word = _word(parts[..., 4:])
    scales = _scale_of(word).add_(0.5).mul_(halves(blocks, 0)).mul_(0.25)
    values = looked_up(table_on(blocks.device, _iq2_xxs), parts[..., :4])
    return _signed(values, scales, _even_signs(word), even=True)


def iq2_xs(blocks: Tensor) -> Tensor:
    """Sixteen sub-blocks of 16: two codes of nine bits with seven signs each."""
    word = words(blocks, 2, 66).reshape(-1, 16, 2)
    scales = _iq2_scales(blocks, 66)
    values = looked_up(table_on(blocks.device, _iq2_xs), word & 511)
    return _signed(values, scales, word >> 9, even=True)


def iq2_s(blocks: Tensor) -> Tensor:
    """Sixteen sub-blocks of 16: two codes of ten bits with eight signs each."""
    codes = blocks[:, 2:34].int() | interleaved(blocks[:, 66:74], 2).flatten(1).int() << 8
    values = looked_up(table_on(blocks.device, _iq2_s), codes.reshape(-1, 16, 2))
    return _signed(values, _iq2_scales(blocks, 74), blocks[:, 34:66].reshape(-1, 16, 2), even=False)


def iq3_xxs(blocks: Tensor) -> Tensor:
    """Eight sub-blocks of 32: eight codes of four weights; four times seven signs and a scale stand behind."""
    word = _word(blocks[:, 66:].reshape(-1, 8, 4))
    scales = _scale_of(word).add_(0.5).mul_(halves(blocks, 0)).mul_(0.5)
    values = looked_up(table_on(blocks.device, _iq3_xxs), blocks[:, 2:66]).view(-1, 8, 4, 8)
    return _signed(values, scales, _even_signs(word), even=True)


def iq3_s(blocks: Tensor) -> Tensor:
    """Eight sub-blocks of 32: eight codes of nine bits, of four weights each."""
    codes = blocks[:, 2:66].int() | interleaved(blocks[:, 66:74], 1).flatten(1).int() << 8
    values = looked_up(table_on(blocks.device, _iq3_s), codes).view(-1, 8, 4, 8)
    sc = interleaved(blocks[:, 106:], 4).flatten(1).float()
    scales = sc.mul_(2).add_(1).mul_(halves(blocks, 0))
    return _signed(values, scales, blocks[:, 74:106].reshape(-1, 8, 4), even=False)


def iq1_s(blocks: Tensor) -> Tensor:
    """Eight sub-blocks of 32: four codes of eleven bits, a scale and a shift."""
    high = words(blocks, 34, 50)
    scales = (high >> 12 & 7).mul_(2).add_(1).float().mul_(halves(blocks, 0))
    bits = torch.stack([high >> 3 * g & 7 for g in range(4)], dim=-1)
    codes = blocks[:, 2:34].int() | bits.flatten(1) << 8
    values = looked_up(table_on(blocks.device, _iq1_s), codes.reshape(-1, 8, 4))
    return values.add_(_shift(high >> 15)[..., None, None]).mul_(scales[..., None, None]).flatten(1)


def iq1_m(blocks: Tensor) -> Tensor:
    """Sixteen sub-blocks of 16: two codes of eleven bits with a shift each, and a scale; d lies among the scales."""
    packed = words(blocks, 48, 56)
    bits = sum((packed[:, m : m + 1] >> 12 << 4 * m for m in range(1, 4)), packed[:, :1] >> 12)
    d = bits.short().view(torch.float16).float()
    sc = torch.stack([packed >> 3 * k & 7 for k in range(4)], dim=-1).flatten(1)
    scales = sc.mul_(2).add_(1).float().mul_(d)
    high = interleaved(blocks[:, 32:48], 4).int()  # [n, 16, 2]
    codes = blocks[:, :32].int().reshape(-1, 16, 2) | (high & 7) << 8
    values = looked_up(table_on(blocks.device, _iq1_m), codes)
    return values.add_(_shift(high >> 3)[..., None]).mul_(scales[..., None, None]).flatten(1)


def _signed(values: Tensor, scales: Tensor, signs: Tensor, *, even: bool) -> Tensor:
    """Entries f32 [n, n_sub, groups, 8] times scales [n, n_sub], with the signs [n, n_sub, groups] of each group."""
    factors = table_on(signs.device, _even_factors if even else _factors)
    return values.mul_(scales[..., None, None]).mul_(looked_up(factors, signs)).flatten(1)


def _word(packed: Tensor) -> Tensor:
    """The uint32 of four bytes [n, 8, 4], as int32 [n, 8]: its lower 31 bits, and the highest as the sign."""
    return packed.contiguous().view(torch.int32).squeeze(-1)


def _scale_of(word: Tensor) -> Tensor:
    """The upper four bits, f32."""
    return (word >> 28 & 15).float()


def _even_signs(word: Tensor) -> Tensor:
    """Four times seven bits, int32 [n, 8, 4]."""
    return torch.stack([word >> 7 * g & 127 for g in range(4)], dim=-1)


def _iq2_scales(blocks: Tensor, at: int) -> Tensor:
    """d * (0.5 + sc) / 4 of sixteen scales from byte `at` on: f32 [n, 16]."""
    sc = interleaved(blocks[:, at : at + 8], 4).flatten(1).float()
    return sc.add_(0.5).mul_(halves(blocks, 0)).mul_(0.25)


def _shift(bit: Tensor) -> Tensor:
    """-DELTA where the bit is set, else DELTA."""
    return (bit & 1).float().mul_(-2 * DELTA).add_(DELTA)


_iq2_xxs, _iq2_xs, _iq2_s = (partial(entries, q) for q in (QType.IQ2_XXS, QType.IQ2_XS, QType.IQ2_S))
_iq1_s, _iq1_m = (partial(entry_levels, qtype) for qtype in (QType.IQ1_S, QType.IQ1_M))


def _iq3_xxs() -> Array:
    return LEVELS[codebook(QType.IQ3_XXS).levels]


def _iq3_s() -> Array:
    levels: Array = 2 * codebook(QType.IQ3_S).levels.astype("f4") + 1
    return levels


def _factors() -> Array:
    return sign_factors(even=False).reshape(-1, 8)


def _even_factors() -> Array:
    return sign_factors(even=True).reshape(-1, 8)
