"""Decoders of the types whose codes are indices of sixteen values: IQ4_NL, IQ4_XS, MXFP4, NVFP4.

Each takes blocks uint8 [n, type_size] to f32 [n, block_size], in the order of operations of the module of the same name
in `quantize.blocks`.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

from calibration.decoders.bits import fields, halves, interleaved, looked_up, table_on
from quantize.blocks import iq4, mxfp4, nvfp4
from quantize.tensors import Array


def iq4_nl(blocks: Tensor) -> Tensor:
    """d * TABLE[code]."""
    codes = fields(blocks[:, 2:], 4).flatten(1)
    return looked_up(table_on(blocks.device, _iq4), codes).mul_(halves(blocks, 0))


def iq4_xs(blocks: Tensor) -> Tensor:
    """d * (sc - 32) * TABLE[code], eight sub-blocks of 32."""
    low, high = interleaved(blocks[:, 4:8], 4).flatten(1), interleaved(blocks[:, 2:4], 2).flatten(1)
    scales = (low | high << 4).float().sub_(32).mul_(halves(blocks, 0))
    codes = fields(blocks[:, 8:].reshape(-1, 8, 16), 4).flatten(2)
    return looked_up(table_on(blocks.device, _iq4), codes).mul_(scales[..., None]).flatten(1)


def decode_mxfp4(blocks: Tensor) -> Tensor:
    """A power of two times TABLE[code]."""
    scales = looked_up(table_on(blocks.device, _powers_of_two), blocks[:, :1])
    return looked_up(table_on(blocks.device, _e2m1), fields(blocks[:, 1:], 4).flatten(1)).mul_(scales)


def decode_nvfp4(blocks: Tensor) -> Tensor:
    """A small float times TABLE[code], four sub-blocks of 16."""
    scales = looked_up(table_on(blocks.device, _small_floats), blocks[:, :4])
    codes = fields(blocks[:, 4:].reshape(-1, 4, 8), 4).flatten(2)
    return looked_up(table_on(blocks.device, _e2m1), codes).mul_(scales[..., None]).flatten(1)


def _iq4() -> Array:
    return iq4.VALUES


def _e2m1() -> Array:
    return mxfp4.TABLE


def _powers_of_two() -> Array:
    """2^(e - 128) for each byte e (`quantize.blocks.mxfp4.half_scale`)."""
    return np.ldexp(1.0, np.arange(256) - 128).astype(np.float32)


def _small_floats() -> Array:
    return nvfp4.SCALES
