"""Activations rounded as llama.cpp's CPU kernels round them, against ggml's own functions."""

from __future__ import annotations

import ctypes

import ggml
import numpy as np
import pytest
import torch

from calibration.forward.int8 import InputRounding, round_q8_0, round_q8_k, rounding_for
from quantize.blocks import WRITABLE
from quantize.tensors import Array, QType, TensorSpec

pytestmark = pytest.mark.numeric


def _activations(n_per_row: int, seed: int = 0) -> Array:
    """Rows with all that comes: heavy tails, zeros, one outlier, ties, small and large."""
    rng = np.random.default_rng(seed)
    x = rng.standard_t(3, (24, n_per_row)).astype(np.float32)
    x[3] = 0
    x[4, : n_per_row // 2] = 0
    x[5, 7] = 300
    x[6] = rng.integers(-127, 128, n_per_row)
    x[6, 0] = 127
    x[7] *= 1e-20
    x[8] *= 1e20
    x[9] = -x[9]
    return x


def test_q8_k_is_ggmls() -> None:
    ggml.require()
    x = _activations(512)
    blocks = np.zeros((len(x), 2 * 292), np.uint8)
    found = np.empty_like(x)
    for name, source, target in (
        ("quantize_row_q8_K_ref", x, blocks),
        ("dequantize_row_q8_K", blocks, found),
    ):
        function = getattr(ggml.library(), name)
        function.restype = None
        function.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
        function(source.ctypes.data, target.ctypes.data, x.size)
    assert (round_q8_k(torch.from_numpy(x)).numpy() == found).all()


def test_q8_0_is_that_of_the_x86_kernel() -> None:
    x = _activations(64)
    wanted = np.empty_like(x)
    for row, out in zip(
        x.reshape(-1, 32), wanted.reshape(-1, 32), strict=True
    ):  # quantize_row_q8_0, word by word
        highest = np.abs(row).max()
        with np.errstate(all="ignore"):
            d = np.float32(highest / np.float32(127)).astype(np.float16).astype(np.float32)
            scale = np.float32(127) / highest if highest else np.float32(0)
            out[:] = np.rint(row * scale) * d
    # float16 overflows for the largest row, there as here
    found = round_q8_0(torch.from_numpy(x)).numpy()
    assert (np.isnan(found) == np.isnan(wanted)).all()
    assert (found == wanted)[~np.isnan(wanted)].all()


def test_the_rounding_is_a_few_thousandths() -> None:
    x = torch.from_numpy(np.random.default_rng(1).normal(0, 1, (100, 256)).astype(np.float32))
    for rounded, least, most in ((round_q8_k(x), 0.005, 0.01), (round_q8_0(x), 0.003, 0.008)):
        error = float((rounded - x).square().mean().sqrt())
        assert least < error < most


def test_every_type_has_its_rounding() -> None:
    large = {"Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_XS"}
    for qtype in WRITABLE:
        rounding = rounding_for(qtype)
        if qtype == QType.F32:
            assert rounding is None
        elif qtype in (QType.F16, QType.BF16):
            assert rounding not in (None, round_q8_0, round_q8_k)
        else:
            assert rounding is (round_q8_k if qtype.name in large else round_q8_0)


@pytest.mark.parametrize(("qtype", "dtype"), [(QType.F16, torch.float16), (QType.BF16, torch.bfloat16)])
def test_float_weights_round_to_their_type(qtype: QType, dtype: torch.dtype) -> None:
    x = torch.from_numpy(_activations(32)[:6])
    found = InputRounding()(TensorSpec("w", (4, 32), qtype), x)
    assert found.dtype == torch.float32
    assert (found == x.to(dtype).float()).all()


def test_a_common_input_is_rounded_once() -> None:
    rounding = InputRounding(lambda spec: QType.F32 if spec.name == "router" else spec.qtype)
    x = torch.ones(2, 256) * 0.3
    gate, up = (TensorSpec(name, (8, 256), QType.Q4_K) for name in ("gate", "up"))
    assert rounding(gate, x) is rounding(up, x)
    assert rounding(TensorSpec("down", (8, 256), QType.Q5_0), x) is not rounding(gate, x)
    assert rounding(TensorSpec("router", (8, 256), QType.BF16), x) is x
    assert (rounding(gate, x + 1) != rounding(gate, x)).all()


def test_a_rounded_input_is_dropped_with_its_input() -> None:
    rounding = InputRounding()
    x = torch.ones(2, 256) * 0.3
    rounding(TensorSpec("down", (8, 256), QType.Q4_K), x)
    assert rounding._last is not None
    del x
    assert rounding._last is None
