"""The numbers of a checkpoint in the order that GGUF wants: rows of rotary pairs, codes of MXFP4."""

from __future__ import annotations

import numpy as np

from quantize.tensors import Array

__all__ = ["neighbours", "repacked"]

CODE_BYTES = 16  # of a block of 32 codes
HALF = CODE_BYTES // 2


def neighbours(values: Array, n_heads: int) -> Array:
    """Rows of rotary halves -> rows of rotary pairs (`conversion/llama.py`: LlamaModel.permute).

    values [n_heads * head_dim, n]: new_row[h*hd + 2*i + s] = old_row[h*hd + s*hd/2 + i].
    """
    n_row, n = values.shape
    halves = values.reshape(n_heads, 2, n_row // n_heads // 2, n)
    return halves.swapaxes(1, 2).reshape(n_row, n)


def repacked(codes: Array, exponents: Array) -> Array:
    """MXFP4 as OpenAI stores it -> ggml's block_mxfp4 (ggml/src/ggml-common.h).

    A checkpoint keeps the codes of the weights 2j and 2j + 1 in byte j of a block, the first one in the lower half;
    ggml those of j and j + 16, behind the exponent. Codes and exponents themselves are the same (conversion/gpt_oss.py:
    GptOssModel.repack_mxfp4).

    Args:
        codes: uint8 [n_rows, 16 * n_block].
        exponents: uint8 [n_rows, n_block].

    Returns:
        uint8 [n_rows, 17 * n_block].
    """
    pairs = codes.reshape(*exponents.shape, 2, HALF)
    low, high = pairs & 15, pairs >> 4  # the even weights, the odd ones: [n_rows, n_block, half, 8]
    blocks = np.empty((*exponents.shape, 1 + CODE_BYTES), np.uint8)
    blocks[..., 0] = exponents
    blocks[..., 1::2] = low[..., 0, :] | low[..., 1, :] << 4
    blocks[..., 2::2] = high[..., 0, :] | high[..., 1, :] << 4
    return blocks.reshape(len(exponents), -1)
