"""Decoders of the K types: super-blocks of 256 weights, whose sub-blocks have scales, and some have mins.

Each takes blocks uint8 [n, type_size] to f32 [n, 256], in the order of operations of the module of the same name in
`quantize.blocks`: (d * sc) * code - (dmin * m), each of them rounded to float32.
"""

from __future__ import annotations

import torch
from torch import Tensor

from calibration.decoders.bits import fields, halves


def q2_k(blocks: Tensor) -> Tensor:
    """Sixteen sub-blocks with scales and mins of 4 bits."""
    codes = fields(blocks[:, 16:80].reshape(-1, 2, 32), 2).reshape(-1, 16, 16)
    scales = (blocks[:, :16] & 15).float().mul_(halves(blocks, 80))
    mins = (blocks[:, :16] >> 4).float().mul_(halves(blocks, 82))
    return _scaled(codes.float(), scales).sub_(mins[..., None]).flatten(1)


def q3_k(blocks: Tensor) -> Tensor:
    """Sixteen sub-blocks with signed scales of 6 bits."""
    low, high = fields(blocks[:, 96:104], 4).flatten(1), fields(blocks[:, 104:108], 2).flatten(1)
    scales = (low | high << 4).float().sub_(32).mul_(halves(blocks, 108))
    two = fields(blocks[:, 32:96].reshape(-1, 2, 32), 2).reshape(-1, 8, 32)
    codes = (two | fields(blocks[:, :32], 1) << 2).reshape(-1, 16, 16)
    return _scaled(codes.float().sub_(4), scales).flatten(1)


def q4_k(blocks: Tensor) -> Tensor:
    """Eight sub-blocks with scales and mins of 6 bits."""
    codes = fields(blocks[:, 16:].reshape(-1, 4, 32), 4).reshape(-1, 8, 32)
    return _with_k4_head(codes, blocks)


def q5_k(blocks: Tensor) -> Tensor:
    """The same with a fifth bit of each code."""
    low = fields(blocks[:, 48:].reshape(-1, 4, 32), 4).reshape(-1, 8, 32)
    return _with_k4_head(low.bitwise_or_(fields(blocks[:, 16:48], 1) << 4), blocks)


def q6_k(blocks: Tensor) -> Tensor:
    """Sixteen sub-blocks with signed scales of 8 bits."""
    low = fields(blocks[:, :128].reshape(-1, 2, 64), 4).reshape(-1, 2, 4, 32)
    high = fields(blocks[:, 128:192].reshape(-1, 2, 32), 2)
    codes = (low | high << 4).reshape(-1, 16, 16)
    scales = blocks[:, 192:208].view(torch.int8).float().mul_(halves(blocks, 208))
    return _scaled(codes.float().sub_(32), scales).flatten(1)


def _with_k4_head(codes: Tensor, blocks: Tensor) -> Tensor:
    """The values of codes [n, 8, 32] whose scales and mins lie as `quantize.blocks.k4_scales` says."""
    sc, m, both = blocks[:, 4:8], blocks[:, 8:12], blocks[:, 12:16]
    all_sc = torch.cat((sc & 63, both & 15 | sc >> 6 << 4), dim=1)
    all_m = torch.cat((m & 63, both >> 4 | m >> 6 << 4), dim=1)
    scales, mins = all_sc.float().mul_(halves(blocks, 0)), all_m.float().mul_(halves(blocks, 2))
    return _scaled(codes.float(), scales).sub_(mins[..., None]).flatten(1)


def _scaled(values: Tensor, scales: Tensor) -> Tensor:
    """Values f32 [n, n_sub, k] times the scales [n, n_sub] of their sub-blocks, in their place."""
    return values.mul_(scales[..., None])
