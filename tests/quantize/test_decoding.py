"""Weights out of stored bytes: which types can be decoded, and what is said of the others."""

from __future__ import annotations

import gguf
import numpy as np
import pytest

from quantize.blocks import WRITABLE
from quantize.codec import encode
from quantize.decoding import can_decode, decode_stored, to_f32
from quantize.exceptions import DecodeError
from quantize.tensors import QType


def test_what_can_be_decoded() -> None:
    for qtype in WRITABLE:
        assert can_decode(qtype)
    assert not can_decode(QType.Q8_K)


def test_weights_are_those_of_the_gguf_library() -> None:
    blocks = np.random.default_rng(0).integers(0, 60, (3, 2 * 66), np.uint8)
    weights = decode_stored(blocks, "iq2_xxs", 512)
    assert weights.shape == (3, 512)
    assert (weights == gguf.dequantize(blocks, gguf.GGMLQuantizationType.IQ2_XXS)).all()


def test_what_cannot_be_decoded() -> None:
    with pytest.raises(DecodeError, match="type Q8_K cannot be decoded"):
        decode_stored(np.zeros((1, 292), np.uint8), QType.Q8_K, 256)
    for n_bytes, n_per_row in ((66, 512), (67, 256)):
        with pytest.raises(DecodeError, match="blocks of IQ2_XXS for rows of"):
            decode_stored(np.zeros((1, n_bytes), np.uint8), QType.IQ2_XXS, n_per_row)


def test_floats_stay_as_they_are_stored() -> None:
    weights = np.linspace(-2, 2, 64, dtype=np.float32).reshape(2, 32)
    for qtype, dtype in ((QType.F32, np.float32), (QType.F16, np.float16), (QType.BF16, np.uint16)):
        stored = decode_stored(encode(weights, qtype), qtype, 32)
        assert stored.dtype == dtype
        assert np.allclose(to_f32(stored), weights, atol=2**-7)
        assert to_f32(stored).dtype == np.float32


def test_to_f32_is_exact() -> None:
    weights = np.array([[1.5, -0.0, 2.0**-120, -3.0]], np.float32)
    bits = (weights.view(np.uint32) >> 16).astype(np.uint16)
    assert np.array_equal(to_f32(bits).view(np.uint32), weights.view(np.uint32))
    assert to_f32(weights) is weights
    half = np.array([[1.5, 2.0**-24]], np.float16)
    assert to_f32(half).tolist() == [[1.5, 2.0**-24]]
