"""The checks that every block format must pass, in the manner of numcodecs: one module, called once per format."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import ggml
import gguf
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from places import BENCH, GOLDEN, ROOT

from quantize.blocks import block_format
from quantize.blocks.base import GroupFormat
from quantize.blocks.jit import JIT
from quantize.codec import decode, encode, row_bytes
from quantize.guide import Guide
from quantize.tensors import Array, QType

MODEL = BENCH / "harmony-nano"
BLOCKS = GOLDEN / "blocks"
N_PER_ROW = 768  # three super-blocks: every block size divides it, and no power of two does


def to_bf16(values: Array) -> Array:
    """The bits of bfloat16, truncated (any bits will do for a test)."""
    return (np.ascontiguousarray(values, np.float32).view(np.uint32) >> 16).astype(np.uint16)


# ---- samples -------------------------------------------------------------------------------------------------------


def samples(n_rows: int = 5, n_per_row: int = N_PER_ROW) -> dict[str, Array]:
    """Weights by name, float32 [n_rows, n_per_row]: usual distributions, and all that has ever broken a quantizer."""
    rng = np.random.default_rng(20260610)
    shape = (n_rows, n_per_row)
    normal = rng.standard_normal(shape).astype(np.float32) * np.float32(0.02)
    sparse = np.where(rng.random(shape) < 0.03, normal, np.float32(0))
    spikes = normal.copy()
    spikes[:, ::97] *= np.float32(300)
    blocks_of_zero = normal.copy().reshape(-1, 32)
    blocks_of_zero[rng.random(len(blocks_of_zero)) < 0.5] = 0
    steps = np.repeat(rng.standard_normal((n_rows, n_per_row // 32)), 32, axis=1)  # constant in each 32
    found = {
        "normal": normal,
        "student": rng.standard_t(2.5, shape) * 0.02,
        "laplace": rng.laplace(size=shape) * 0.02,
        "cauchy": rng.standard_cauchy(shape),
        "uniform": rng.random(shape) - 0.3,
        "positive": np.abs(normal),
        "negative": -np.abs(normal),
        "far_positive": normal + 1,
        "far_negative": normal - 1,
        "zero": np.zeros(shape),
        "negative_zero": np.full(shape, -0.0),
        "zeros_of_both_signs": rng.choice(np.array([0.0, -0.0, 0.0, -0.0, 0.5]), shape)
        * (rng.random((n_rows, 1)) < 0.7),
        "constant": np.full(shape, 0.37),
        "constant_negative": np.full(shape, -0.37),
        "steps": steps,
        "two_values": np.where(rng.random(shape) < 0.5, 0.25, -0.125),
        "integers": rng.integers(-8, 8, shape),
        "sparse": sparse,
        "spikes": spikes,
        "some_zero_blocks": blocks_of_zero.reshape(shape),
        "tiny": normal * np.float32(1e-8),
        "tiny_f16_scale": normal * np.float32(1e-5),
        "denormal": normal * np.float32(1e-38),
        "smallest": rng.integers(-3, 4, shape) * np.float64(1.5e-45),
        "huge": normal * np.float32(1e6),
        "f16_overflow": normal * np.float32(1e9),
        "square_overflow": normal * np.float32(1e21),
        "largest": np.sign(normal) * np.float32(3e38) * rng.random(shape).astype(np.float32),
        "mixed_magnitudes": normal
        * np.exp2(rng.integers(-30, 30, (n_rows, n_per_row // 16)).repeat(16, axis=1)),
    }
    return {name: np.ascontiguousarray(values, np.float32) for name, values in found.items()}


def importances(n_per_row: int = N_PER_ROW) -> dict[str, Array | None]:
    """Importances by name, float32 [n_per_row] or None: absent, usual, zero, sparse, extreme."""
    rng = np.random.default_rng(20260611)
    usual = rng.chisquare(1, n_per_row)
    half = usual.copy()
    half[: n_per_row // 2] = 0
    found = {
        "usual": usual,
        "ones": np.ones(n_per_row),
        "zero": np.zeros(n_per_row),
        "half_zero": half,
        "sparse": np.where(rng.random(n_per_row) < 0.04, usual, 0),
        "extreme": np.exp2(rng.uniform(-60, 60, n_per_row)),
        "overflowing": np.exp2(rng.uniform(-140, 127, n_per_row)),
        "denormal": usual * 1e-42,
    }
    return {"none": None} | {name: np.ascontiguousarray(values, np.float32) for name, values in found.items()}


def for_type(qtype: QType, *importances: Array | None) -> list[Array | None]:
    """Those of some importances with which the type can be encoded: all, or all but None."""
    needs_importance = block_format(qtype).needs_importance
    return [importance for importance in importances if importance is not None or not needs_importance]


def trained_weights(n_weights: int) -> Array:
    """About so many trained bf16 weights, uint16 [n_rows, 768], from the benchmark model's experts."""
    if not MODEL.is_dir():
        pytest.skip(f"{MODEL.name} is not beside the repository")
    parts: list[Array] = []
    for name, shape, data in _bf16_tensors(sorted(MODEL.glob("*.safetensors"))):
        if len(shape) == 2 and ".experts." in name:
            parts.append(data)
        if sum(part.size for part in parts) >= n_weights:
            break
    joined = np.concatenate(parts)
    return joined[: min(n_weights, joined.size) // N_PER_ROW * N_PER_ROW].reshape(-1, N_PER_ROW)


def _bf16_tensors(paths: Iterable[Path]) -> Iterator[tuple[str, list[int], Array]]:
    """The tensors of safetensors files as flat uint16, read by hand (safetensors' numpy side has no bfloat16)."""
    for path in paths:
        raw = path.read_bytes()
        start = 8 + int.from_bytes(raw[:8], "little")
        for name, entry in json.loads(raw[8:start]).items():
            if name != "__metadata__" and entry["dtype"] == "BF16":
                begin, end = entry["data_offsets"]
                yield name, entry["shape"], np.frombuffer(raw[start + begin : start + end], "<u2")


# ---- checks --------------------------------------------------------------------------------------------------------


def assert_same_blocks(ours: Array, theirs: Array, qtype: QType, what: str) -> None:
    """Fail with the first differing block, byte by byte."""
    assert ours.shape == theirs.shape, f"{qtype.name} {what}: shape {ours.shape}, expected {theirs.shape}"
    if np.array_equal(ours, theirs):
        return
    size = block_format(qtype).type_size
    a, b = ours.reshape(-1, size), theirs.reshape(-1, size)
    wrong = np.flatnonzero((a != b).any(axis=1))
    first = wrong[0]
    pytest.fail(
        f"{qtype.name} {what}: {len(wrong)} of {len(a)} blocks differ, first block {first}:\n"
        f"ours     {a[first].tobytes().hex()}\nexpected {b[first].tobytes().hex()}"
    )


def assert_bytes_of_ggml(qtype: QType, cases: dict[str, tuple[Array, Array | None]]) -> int:
    """Fail where our bytes of some weights with an importance are not ggml's; how many it has.

    Its searches in codebooks abort the process where numbers overflow; ours must come to an end there.
    """
    asked = [(weights, qtype, importance) for weights, importance in cases.values()]
    if isinstance(block_format(qtype), GroupFormat):
        expected = ggml.encode_in_children(asked)
    else:
        expected = [ggml.encode(*case) for case in asked]
    for (what, (weights, importance)), theirs in zip(cases.items(), expected, strict=True):
        ours = encode(weights, qtype, Guide.of(importance))
        if theirs is not None:
            assert_same_blocks(ours, theirs, qtype, what)
    return sum(theirs is not None for theirs in expected)


def check_bytes(qtype: QType) -> None:
    """Encode all samples with all importances: the bytes of `ggml_quantize_chunk`."""
    ggml.require()
    cases = {
        f"{name}, importance {of}": (weights, importance)
        for name, weights in samples().items()
        for of, importance in importances().items()
        if for_type(qtype, importance)
    }
    n_compared = assert_bytes_of_ggml(qtype, cases)
    assert n_compared > 0.8 * len(cases), f"ggml gave bytes for {n_compared} of {len(cases)} cases only"


def check_trained_weights(qtype: QType, n_weights: int = 1 << 19) -> None:
    """Encode bf16 weights of a trained model: the bytes of ggml on the same values."""
    ggml.require()
    weights = trained_weights(n_weights)
    for importance in for_type(qtype, None, importances()["usual"]):
        expected = ggml.encode(weights, qtype, importance)
        assert_same_blocks(encode(weights, qtype, Guide.of(importance)), expected, qtype, "trained weights")


def check_shapes(qtype: QType) -> None:
    """Any number of rows and blocks, so that partly filled tiles are met: the same bytes as one row at a time."""
    rng = np.random.default_rng(3)
    size = block_format(qtype).block_size
    for n_rows, n_blocks in ((1, 1), (3, 1), (67, 1), (1, 130), (5, 27), (2, 64)):
        weights = rng.standard_normal((n_rows, n_blocks * size)).astype(np.float32)
        importance = rng.chisquare(1, n_blocks * size).astype(np.float32)
        for qw in for_type(qtype, None, importance):
            together = encode(weights, qtype, Guide.of(qw))
            alone = np.concatenate([encode(row[None], qtype, Guide.of(qw)) for row in weights])
            assert_same_blocks(together, alone, qtype, f"{n_rows} rows of {n_blocks} blocks")
    nothing = encode(np.empty((0, size), np.float32), qtype, Guide.of(np.ones(size, np.float32)))
    assert nothing.shape == (0, row_bytes(qtype, size))


def check_sources(qtype: QType) -> None:
    """bf16, f16 and f32 weights of the same values give the same blocks; strided views too."""
    rng = np.random.default_rng(4)
    bits = to_bf16(rng.integers(-100, 100, (6, N_PER_ROW)) * np.float32(0.0078125))
    values = ggml.as_float32(bits)
    wide = np.zeros((12, 2 * N_PER_ROW), np.float32)
    wide[::2, ::2] = values
    for importance in for_type(qtype, None, importances()["usual"]):
        expected = encode(values, qtype, Guide.of(importance))
        for source in (bits, values.astype(np.float16), wide[::2, ::2]):
            assert_same_blocks(
                encode(source, qtype, Guide.of(importance)), expected, qtype, f"{source.dtype} source"
            )


def check_decode(qtype: QType) -> None:
    """Decode encoded samples and random bytes: bit for bit the values of gguf-py and of ggml, where at hand."""
    rng = np.random.default_rng(5)
    # float16 fields of random bytes can be NaN, whose sign and payload nobody promises: NaNs are compared as NaNs
    noise = rng.integers(0, 256, (64, row_bytes(qtype, N_PER_ROW)), np.uint8)
    guide = Guide.of(for_type(qtype, None, importances()["usual"])[0])
    parts = [encode(weights, qtype, guide) for weights in samples().values()] + [noise]
    blocks = np.concatenate(parts)
    ours = decode(blocks, qtype, N_PER_ROW)
    theirs = _by_gguf(blocks, qtype)
    if theirs is not None:
        _assert_same_values(ours, theirs, f"{qtype.name} against gguf-py")
    if not ggml.missing() and qtype not in ggml.FLOAT_TYPES:
        _assert_same_values(ours, ggml.decode(blocks, qtype, N_PER_ROW), f"{qtype.name} against ggml")


def _by_gguf(blocks: Array, qtype: QType) -> Array | None:
    """The values of gguf-py; None where its version does not know the type."""
    if int(qtype) not in list(gguf.GGMLQuantizationType):
        return None
    with np.errstate(all="ignore"):
        try:
            values = gguf.dequantize(blocks, gguf.GGMLQuantizationType(qtype))
        except NotImplementedError:
            return None
    return np.ascontiguousarray(values, np.float32)


def _assert_same_values(ours: Array, theirs: Array, what: str) -> None:
    same = (ours.view(np.uint32) == theirs.view(np.uint32)) | (np.isnan(ours) & np.isnan(theirs))
    if not same.all():
        row, column = np.argwhere(~same)[0]
        pytest.fail(f"{what}: {ours[row, column]!r} at {row, column}, expected {theirs[row, column]!r}")


def check_golden(qtype: QType) -> None:
    """Encode committed weights: committed bytes, made once by ggml (tests/golden/make_blocks.py says how)."""
    data = np.load(BLOCKS / "weights.npz")
    expected = np.load(BLOCKS / f"{qtype.name.lower()}.npz")
    for importance in for_type(qtype, None, data["importance"]):
        name = "plain" if importance is None else "weighted"
        assert_same_blocks(
            encode(data["weights"], qtype, Guide.of(importance)), expected[name], qtype, f"golden {name}"
        )


def check_properties(qtype: QType, max_examples: int = 60) -> None:
    """Whatever finite weights and non-negative importances hypothesis thinks of: the bytes of ggml."""
    ggml.require()
    size = max(32, block_format(qtype).block_size)
    drawn = _importances(size) if block_format(qtype).needs_importance else st.none() | _importances(size)

    @settings(
        max_examples=max_examples,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.data())
    def same_bytes(data: st.DataObject) -> None:
        weights = data.draw(_rows(size), label="weights")
        importance = data.draw(drawn, label="importance")
        assert_bytes_of_ggml(qtype, {"drawn": (weights, importance)})

    same_bytes()


def _rows(size: int) -> st.SearchStrategy[Array]:
    """One row: a few distinct values of any magnitude, spread by a seed, so that blocks are odd rather than random."""
    value = st.floats(width=32, allow_nan=False, allow_infinity=False)
    small = st.floats(-1, 1, width=32)
    values = st.lists(value, min_size=1, max_size=6) | st.lists(small, min_size=1, max_size=size)
    return st.builds(_spread, values, st.integers(0, 2**32 - 1), st.just(size))


def _importances(size: int) -> st.SearchStrategy[Array]:
    value = st.floats(0, 2.0**100, width=32) | st.just(0.0)
    return st.builds(
        _spread, st.lists(value, min_size=1, max_size=5), st.integers(0, 2**32 - 1), st.just(size)
    ).map(lambda row: row[0])


def _spread(values: list[float], seed: int, size: int) -> Array:
    drawn = np.random.default_rng(seed).choice(np.array(values, np.float32), (1, size))
    return np.ascontiguousarray(drawn, np.float32)


# ---- the jitted source as plain Python -----------------------------------------------------------------------------


CHECKS = (
    check_bytes,
    check_trained_weights,
    check_shapes,
    check_sources,
    check_decode,
    check_golden,
    check_properties,
)
"""What every format must pass, each as a test of its own."""


def check_without_jit(*qtypes: QType) -> None:
    """A process with NUMBA_DISABLE_JIT=1 encodes and decodes the golden weights' first blocks to the same bytes.

    The first row goes plain and weighted; where blocks are of 256 weights that is one super-block of each.
    """
    for qtype in qtypes:
        assert (BLOCKS / f"{qtype.name.lower()}.npz").exists()
    names = [qtype.name for qtype in qtypes]
    env = os.environ | {
        "NUMBA_DISABLE_JIT": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(Path(__file__).parent)]),
    }
    command = [
        sys.executable,
        "-W",
        "error",
        "-c",
        "import block_checks, sys; block_checks.plain_python(sys.argv[1:])",
    ]
    done = subprocess.run([*command, *names], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.split() == names


def plain_python(names: list[str]) -> None:
    """What the process of `check_without_jit` runs; prints the name of each type that passed."""
    assert not JIT
    data = np.load(BLOCKS / "weights.npz")
    for name in names:
        qtype = QType[name]
        size = block_format(qtype).block_size
        expected = np.load(BLOCKS / f"{name.lower()}.npz")
        whole = size == 256  # such blocks do not depend on the rest of the row
        weights = data["weights"][:2, : size if whole else None]
        for importance in for_type(qtype, None, data["importance"][: weights.shape[1]]):
            of = "plain" if importance is None else "weighted"
            blocks = encode(weights, qtype, Guide.of(importance))
            assert_same_blocks(blocks, expected[of][:2, : blocks.shape[1]], qtype, f"plain Python, {of}")
            values = decode(blocks, qtype, weights.shape[1])
            theirs = _by_gguf(blocks, qtype)
            if theirs is not None:
                _assert_same_values(values, theirs, f"{name} decoded by plain Python")
        print(name)
