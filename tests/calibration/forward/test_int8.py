"""Activations rounded as llama.cpp's CPU kernels round them, against ggml's own functions."""

from __future__ import annotations

import ctypes

import ggml
import numpy as np
import pytest
import torch
from block_checks import BLOCKS
from places import GOLDEN

from calibration.forward.attention import attend
from calibration.forward.int8 import InputRounding, round_f16, round_q8_0, round_q8_k, rounding_for
from calibration.forward.stored import to_tensor
from quantize.blocks import WRITABLE
from quantize.decoding import decode_stored
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
    small = {"Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "IQ4_NL", "MXFP4", "NVFP4", "Q1_0", "Q2_0"}
    for qtype in WRITABLE:
        rounding = rounding_for(qtype)
        if qtype == QType.F32:
            assert rounding is None
        elif qtype in (QType.F16, QType.BF16):
            assert rounding not in (None, round_q8_0, round_q8_k)
        else:
            assert rounding is (round_q8_0 if qtype.name in small else round_q8_k)


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


# -- whole products, and attention, as ggml's kernels found them (golden/make_products.py)

ORDER = 2e-6  # what the order of additions in float32 may change, relative to the root of the sum of squared terms
SUMS = 2e-3  # the same with weights whose minima are multiplied with sums in float16
WITH_SUMS = (QType.Q4_1, QType.Q5_1)
UNROUNDED = {QType.F32: 0.0, QType.F16: 3e-4, QType.BF16: 2e-3}
"""What inputs that are not rounded change at least, by type of weights; with blocks of codes it is more."""


@pytest.mark.parametrize("qtype", WRITABLE, ids=lambda qtype: qtype.name)
def test_a_product_is_that_of_ggmls_kernel(qtype: QType) -> None:
    golden = np.load(GOLDEN / "products.npz")
    x, theirs = (torch.from_numpy(golden[name]).double() for name in ("x", f"y_{qtype.name}"))
    made = np.load(BLOCKS / f"{qtype.name.lower()}.npz")
    blocks = made["plain" if "plain" in made else "weighted"][: theirs.shape[1]]
    weights = to_tensor(decode_stored(blocks, qtype, x.shape[1])).double()
    rounded = InputRounding()(TensorSpec("w", tuple(weights.shape), qtype), x.float())
    size = (x.square() @ weights.square().T).sqrt()

    def error(inputs: torch.Tensor) -> float:
        return float(((inputs.double() @ weights.T - theirs).abs() / size).max())

    assert error(rounded) < (SUMS if qtype in WITH_SUMS else ORDER)
    assert error(x) >= UNROUNDED.get(qtype, 7e-3)


def test_attention_is_that_of_ggmls_kernel() -> None:
    """Keys and values in float16, queries and all that follows in float32."""
    golden = np.load(GOLDEN / "products.npz")
    q, k, v, theirs = (torch.from_numpy(golden[name])[None] for name in ("q", "k", "v", "mixed"))

    def error(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> float:
        return float((attend(q, k, v, 0.25) - theirs).abs().max())

    assert error(q, round_f16(k), round_f16(v)) < 1e-5
    assert error(q, round_f16(k), v) > 1e-4
    assert error(q, k, round_f16(v)) > 1e-4
    assert error(round_f16(q), round_f16(k), round_f16(v)) > 1e-4


def test_the_golden_products_are_what_ggml_finds() -> None:
    ggml.require()
    golden = np.load(GOLDEN / "products.npz")
    blocks = np.load(BLOCKS / "q4_k.npz")["plain"][: golden["y_Q4_K"].shape[1]]
    np.testing.assert_allclose(ggml.multiply(blocks, QType.Q4_K, golden["x"]), golden["y_Q4_K"], rtol=1e-4)
    q, k, v = (golden[name] for name in ("q", "k", "v"))
    np.testing.assert_allclose(ggml.attend(q, k, v, 0.25), golden["mixed"], atol=1e-5)
