"""The way from a type to its decoder, and the loop over parts of a matrix that bounds the memory for codes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from calibration.decoders import codebooks, k_types, plain, tables
from quantize.exceptions import DecodeError
from quantize.tensors import QType

__all__ = ["PART", "decode_blocks"]

PART = 1 << 23
"""Weights that are decoded at once: their codes and values take some ten bytes each on the way."""

FLOATS = {QType.F32: torch.float32, QType.F16: torch.float16, QType.BF16: torch.bfloat16}

DECODERS: dict[QType, Callable[[Tensor], Tensor]] = {
    QType.Q8_0: plain.q8_0,
    QType.Q4_0: plain.q4_0,
    QType.Q4_1: plain.q4_1,
    QType.Q5_0: plain.q5_0,
    QType.Q5_1: plain.q5_1,
    QType.Q1_0: plain.q1_0,
    QType.Q2_0: plain.q2_0,
    QType.TQ1_0: plain.tq1_0,
    QType.TQ2_0: plain.tq2_0,
    QType.Q2_K: k_types.q2_k,
    QType.Q3_K: k_types.q3_k,
    QType.Q4_K: k_types.q4_k,
    QType.Q5_K: k_types.q5_k,
    QType.Q6_K: k_types.q6_k,
    QType.IQ4_NL: tables.iq4_nl,
    QType.IQ4_XS: tables.iq4_xs,
    QType.MXFP4: tables.decode_mxfp4,
    QType.NVFP4: tables.decode_nvfp4,
    QType.IQ1_S: codebooks.iq1_s,
    QType.IQ1_M: codebooks.iq1_m,
    QType.IQ2_XXS: codebooks.iq2_xxs,
    QType.IQ2_XS: codebooks.iq2_xs,
    QType.IQ2_S: codebooks.iq2_s,
    QType.IQ3_XXS: codebooks.iq3_xxs,
    QType.IQ3_S: codebooks.iq3_s,
}
"""All types that `quantize.decoding` decodes, but floats: from blocks uint8 [n, type_size] to f32 [n, block_size]."""


def decode_blocks(blocks: Tensor, qtype: QType, dtype: torch.dtype | None = torch.float32) -> Tensor:
    """The weights that blocks stand for, bit for bit those of `quantize.decoding.decode_stored`, rounded to `dtype`.

    Args:
        blocks: uint8 [n_rows, bytes per row], whole blocks, C-contiguous, on any device.
        qtype: their type.
        dtype: of the result; None: floats as they are stored, blocks as float32.

    Returns:
        [n_rows, n_per_row] on the same device; of floats in the same type, the memory of the blocks.

    Raises:
        DecodeError: the type cannot be decoded.
    """
    if qtype in FLOATS:
        return blocks.view(FLOATS[qtype]).to(dtype or FLOATS[qtype])
    decoder = DECODERS.get(qtype)
    if decoder is None:
        raise DecodeError("", f"blocks of type {qtype.name} cannot be decoded")
    n_rows, row_bytes = blocks.shape
    n_per_row = row_bytes // qtype.type_size * qtype.block_size
    step = max(1, PART // max(1, n_per_row))
    weights = torch.empty((n_rows, n_per_row), dtype=dtype or torch.float32, device=blocks.device)
    for first in range(0, n_rows, step):
        part = blocks[first : first + step]
        weights[first : first + step] = decoder(part.reshape(-1, qtype.type_size)).view(-1, n_per_row)
    return weights
