"""The unit of work: what `encode` accepts and refuses, the scan for non-finite weights, the compiling ahead."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import ggml
import numpy as np
import pytest
from block_checks import importances, samples, to_bf16
from places import ROOT

import quantize
from quantize.blocks import WRITABLE, block_format, can_encode
from quantize.codec import decode, encode, first_non_finite, row_bytes
from quantize.compiling import compile_kernels
from quantize.exceptions import DecodeError, ImatrixError, MoeGgufError, RecipeError
from quantize.guide import Guide
from quantize.telling import Progress
from quantize.tensors import Array, QType

pytestmark = pytest.mark.numeric


def test_row_bytes_is_ggml_row_size() -> None:
    ggml.require()
    for qtype in (QType.Q4_K, QType.Q5_1, QType.Q8_0, QType.F16):
        assert row_bytes(qtype, 1024) == ggml.library().ggml_row_size(int(qtype), 1024)


@pytest.mark.parametrize("n_per_row", [0, 255, 257, 128])
def test_rows_that_do_not_divide(n_per_row: int) -> None:
    with pytest.raises(RecipeError, match=f"rows of {n_per_row} weights cannot be Q4_K: its blocks hold 256"):
        row_bytes(QType.Q4_K, n_per_row)
    with pytest.raises(RecipeError, match="cannot be Q4_K"):
        encode(np.zeros((2, n_per_row), np.float32), QType.Q4_K)


def test_type_that_nobody_writes() -> None:
    with pytest.raises(RecipeError, match=r"Q8_K cannot be written; known types: .*Q4_K"):
        encode(np.zeros((1, 256), np.float32), QType.Q8_K)


@pytest.mark.parametrize(
    "weights",
    [np.zeros(256, np.float32), np.zeros((1, 256)), np.zeros((1, 256), np.int16)],
    ids=["1d", "f64", "i16"],
)
def test_weights_of_another_kind(weights: np.ndarray) -> None:
    with pytest.raises(RecipeError, match="must be a matrix of float32, float16 or uint16"):
        encode(weights, QType.Q4_K)


def test_importance_that_does_not_fit() -> None:
    weights = np.zeros((2, 512), np.float32)
    with pytest.raises(ImatrixError, match=r"shape \(256,\) does not fit rows of 512"):
        encode(weights, QType.Q4_K, Guide(np.ones(256, np.float32)))
    for bad in (np.nan, np.inf):
        importance = np.ones(512, np.float32)
        importance[300] = bad
        with pytest.raises(ImatrixError, match="NaN or infinity"):
            encode(weights, QType.Q4_K, Guide.of(importance))


def test_importance_is_ignored_where_it_has_no_use() -> None:
    weights = samples()["normal"]
    importance = importances()["usual"]
    assert np.array_equal(encode(weights, QType.Q8_0, Guide.of(importance)), encode(weights, QType.Q8_0))
    assert not np.array_equal(encode(weights, QType.Q4_K, Guide.of(importance)), encode(weights, QType.Q4_K))


def test_importance_of_any_float_type_and_layout() -> None:
    weights, importance = samples()["normal"], importances()["usual"]
    assert importance is not None
    expected = encode(weights, QType.Q4_K, Guide.of(importance))
    assert np.array_equal(encode(weights, QType.Q4_K, Guide(importance.astype(np.float64))), expected)
    assert np.array_equal(encode(weights, QType.Q4_K, Guide(np.repeat(importance, 2)[::2])), expected)


def test_the_weights_are_left_alone() -> None:
    weights = samples()["student"]
    before = weights.copy()
    weights.flags.writeable = False
    encode(weights, QType.Q4_K)
    assert np.array_equal(weights, before)


def test_float16_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quantize.blocks.tiles.PANEL", 1000)  # so that panels are one block column of 64 rows
    weights = samples()["laplace"].astype(np.float16)
    for importance in (None, importances()["usual"]):
        for qtype in (QType.Q4_K, QType.Q5_1):
            expected = encode(weights.astype(np.float32), qtype, Guide.of(importance))
            assert np.array_equal(encode(weights, qtype, Guide.of(importance)), expected)


def test_decode_refuses_what_is_no_row() -> None:
    for blocks in (np.zeros((1, 145), np.uint8), np.zeros(144, np.uint8), np.zeros((1, 144), np.int8)):
        with pytest.raises(DecodeError, match=r"must be uint8 \[n_rows, 144\]"):
            decode(blocks, QType.Q4_K, 256)
    with pytest.raises(DecodeError, match="rows of 257 weights"):
        decode(np.zeros((1, 144), np.uint8), QType.Q4_K, 257)
    with pytest.raises(DecodeError, match="Q8_K cannot be decoded"):
        decode(np.zeros((1, 292), np.uint8), QType.Q8_K, 256)


def test_types_by_name() -> None:
    weights = samples()["normal"]
    guide = quantize.Guide(importances()["usual"])
    blocks = quantize.encode(weights, "q4_K", guide)
    assert np.array_equal(blocks, encode(weights, QType.Q4_K, guide))
    assert np.array_equal(
        quantize.decode(blocks, "Q4_K", weights.shape[1]), decode(blocks, QType.Q4_K, weights.shape[1])
    )
    with pytest.raises(RecipeError, match=r"unknown tensor type 'Q9_K'; known: .*Q4_K"):
        quantize.encode(weights, "Q9_K")


def test_what_can_be_encoded_is_known_without_numba() -> None:
    program = "import sys, quantize.blocks as b; assert b.WRITABLE and 'numba' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)


def test_what_can_be_encoded() -> None:
    for qtype in WRITABLE:
        assert can_encode(qtype) and block_format(qtype).qtype is qtype
    assert not can_encode(QType.Q8_K)


def test_all_errors_are_ours() -> None:
    assert issubclass(RecipeError, MoeGgufError)
    assert issubclass(ImatrixError, MoeGgufError)
    assert issubclass(DecodeError, MoeGgufError)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("at", [0, 4095, 4096, 9999])
def test_first_non_finite(bad: float, at: int) -> None:
    weights = np.full((10, 1000), 3e38, np.float32)
    assert first_non_finite(weights) is None
    assert first_non_finite(to_bf16(weights)) is None
    weights.flat[at] = bad
    weights.flat[9999] = bad
    assert first_non_finite(weights) == at
    assert first_non_finite(to_bf16(weights)) == at
    half = np.full((10, 1000), 65504, np.float16)
    assert first_non_finite(half) is None
    half.flat[at] = bad
    assert first_non_finite(half) == at


def test_first_non_finite_of_nothing() -> None:
    assert first_non_finite(np.empty((0, 256), np.float32)) is None


def test_threads_do_not_meet() -> None:
    """Encoders share no scratch: four at a time give the bytes of one."""
    tensors = [
        np.random.default_rng(seed).standard_normal((80, 1024)).astype(np.float32) for seed in range(8)
    ]
    expected = [encode(weights, QType.Q4_K) for weights in tensors]
    with ThreadPoolExecutor(4) as pool:
        for ours, theirs in zip(
            pool.map(lambda weights: encode(weights, QType.Q4_K), tensors), expected, strict=True
        ):
            assert np.array_equal(ours, theirs)


def test_compiling_ahead_is_reported() -> None:
    told: list[Progress] = []
    jobs = [(np.float16, QType.Q4_K, False), (np.float32, QType.Q4_K, False), (np.uint16, QType.Q8_0, False)]
    compile_kernels(jobs, told.append)
    assert [moment.done for moment in told] == list(range(told[-1].total + 1))
    assert told[-1].total >= 2  # encoders, and kernels that were not in the cache
    assert {(moment.stage, moment.unit) for moment in told} == {("compiling kernels", "kernels")}


def test_no_folder_for_the_cache(tmp_path: Path) -> None:
    """Where numba may write nowhere, kernels are compiled for the process alone."""
    shutil.copytree(ROOT / "quantize", tmp_path / "quantize", ignore=shutil.ignore_patterns("__pycache__"))
    no_folder = tmp_path / "file"
    no_folder.touch()
    for folder in (tmp_path / "quantize", tmp_path / "quantize" / "blocks"):
        (folder / "__pycache__").touch()  # a file where the cache would be
    env = {name: value for name, value in os.environ.items() if name != "NUMBA_CACHE_DIR"}
    env |= {name: str(no_folder) for name in ("HOME", "XDG_CACHE_HOME", "LOCALAPPDATA", "USERPROFILE")}
    env |= {"PYTHONPATH": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"}
    program = "import numpy as np, quantize.codec as e; print(e.first_non_finite(np.array([[1, np.inf]], np.float32)))"
    done = subprocess.run(
        [sys.executable, "-c", program], env=env, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "1\n"), done.stderr


@pytest.mark.slow
def test_cached_kernels_are_forgotten_when_a_callee_changes(tmp_path: Path) -> None:
    """numba looks at the file of a kernel alone; ours must not outlive a change in the file of what it calls."""
    shutil.copytree(ROOT / "quantize", tmp_path / "quantize", ignore=shutil.ignore_patterns("__pycache__"))
    env = os.environ | {"PYTHONPATH": str(tmp_path), "NUMBA_CACHE_DIR": str(tmp_path / "cache")}
    program = "import numpy as np, quantize.blocks.lanes as lanes; print(lanes.rounded_to_half(np.float32(1.00001)))"

    def run() -> str:
        command = [sys.executable, "-c", program]
        return subprocess.run(
            command, env=env, cwd=tmp_path, capture_output=True, text=True, check=True
        ).stdout

    assert float(run()) == 1
    assert list((tmp_path / "cache").rglob("*.nbc"))
    callee = tmp_path / "quantize" / "blocks" / "half.py"
    source = callee.read_text(encoding="utf-8")
    changed = source.replace("return U16(half | I32(", "return U16(half + I32(1) | I32(")
    assert changed != source
    callee.write_text(changed, encoding="utf-8")
    assert float(run()) == 1 + 2.0**-10


def test_a_checked_guide_keeps_its_further_fields() -> None:
    @dataclass(frozen=True, eq=False)
    class Wider(Guide):
        hessian: Array | None = None

    hessian = np.eye(2, dtype=np.float32)
    for importance in (None, np.ones(2)):
        checked = Wider(importance, hessian).checked(2)
        assert isinstance(checked, Wider) and checked.hessian is hessian
