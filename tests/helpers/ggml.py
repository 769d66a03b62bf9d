"""ggml's own encoders and decoders, called by ctypes in the shared library that the xllamacpp wheel brings.

The wheel's ggml-base is an x86-64 release build without FMA, so its bytes are the reference (on arm64 the compiler
contracts products into sums, and a few blocks differ: `missing` says so there).
"""

from __future__ import annotations

import ctypes
import faulthandler
import os
import platform
import resource
import warnings
from functools import cache
from importlib.util import find_spec
from mmap import mmap
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest

from quantize.tensors import Array, QType

FLOAT_P = ctypes.POINTER(ctypes.c_float)
Case = tuple[Array, QType, Array | None]  # weights, type, importance
FLOAT_TYPES = (QType.F32, QType.F16, QType.BF16)


@cache
def missing() -> str:
    """Why ggml cannot be the reference here; empty where it can."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return f"ggml's bytes are compared on x86-64 only, not on {platform.machine()}"
    if find_spec("xllamacpp") is None:
        return "xllamacpp is not installed, so ggml's encoders are not at hand"
    return ""


def require() -> None:
    """Skip the running test, with the reason, where ggml cannot be the reference."""
    if missing():
        pytest.skip(missing())


@cache
def library() -> ctypes.CDLL:
    """The shared library inside the xllamacpp wheel, its functions declared."""
    spec = find_spec("xllamacpp")
    assert spec is not None and spec.origin is not None
    (path,) = [file for file in Path(spec.origin).parent.iterdir() if file.suffix in (".so", ".pyd")]
    lib = ctypes.CDLL(str(path))
    lib.ggml_quantize_chunk.restype = ctypes.c_size_t
    lib.ggml_quantize_chunk.argtypes = [
        ctypes.c_int,
        FLOAT_P,
        ctypes.c_void_p,
        *(ctypes.c_int64, ctypes.c_int64, ctypes.c_int64),
        FLOAT_P,
    ]
    lib.ggml_row_size.restype = ctypes.c_size_t
    lib.ggml_row_size.argtypes = [ctypes.c_int, ctypes.c_int64]
    lib.ggml_quantize_init.argtypes = [ctypes.c_int]
    return lib


def _floats(values: Array) -> ctypes._Pointer[ctypes.c_float]:
    assert values.dtype == np.float32 and values.flags.c_contiguous
    return values.ctypes.data_as(FLOAT_P)


def as_float32(weights: Array) -> Array:
    """Weights as ggml wants them: uint16 is read as the bits of bfloat16."""
    if weights.dtype == np.uint16:
        return (weights.astype(np.uint32) << 16).view(np.float32)
    return np.ascontiguousarray(weights, np.float32)


def encode(weights: Array, qtype: QType, importance: Array | None = None) -> Array:
    """`ggml_quantize_chunk` on [n_rows, n_per_row] weights; returns uint8 [n_rows, row bytes]."""
    values = as_float32(weights)
    n_rows, n_per_row = values.shape
    if qtype == QType.F32:  # no encoder of its own: the values as they are
        return values.view(np.uint8)
    out = np.empty((n_rows, library().ggml_row_size(int(qtype), n_per_row)), np.uint8)
    return encode_into(values, qtype, importance, out)


def encode_into(values: Array, qtype: QType, importance: Array | None, out: Array) -> Array:
    """The same with the conversion to float32 and the allocation left to the caller (for timing)."""
    n_rows, n_per_row = values.shape
    qw = None if importance is None else _floats(np.ascontiguousarray(importance, np.float32))
    written = library().ggml_quantize_chunk(
        int(qtype), _floats(values), out.ctypes.data, 0, n_rows, n_per_row, qw
    )
    assert written == out.nbytes
    return out


def encode_in_children(cases: list[Case]) -> list[Array | None]:
    """What `encode` gives in each case, or None where ggml aborts the process: a copy of this one, left for that."""
    outs: list[Array | None] = []
    for weights, qtype, _ in cases:
        library().ggml_quantize_init(int(qtype))
        size = library().ggml_row_size(int(qtype), weights.shape[1])
        outs.append(np.frombuffer(mmap(-1, len(weights) * size), np.uint8).reshape(len(weights), size))
    n_done = np.frombuffer(mmap(-1, 8), np.int64)
    while n_done[0] < len(cases):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of threads, which the copy has not; it calls nothing but ggml
            child = os.fork()
        if not child:
            _encode_rest(cases, outs, n_done)
        _, status = os.waitpid(child, 0)
        if status:
            outs[n_done[0]] = None
            n_done[0] += 1
    return outs


def _encode_rest(cases: list[Case], outs: list[Array | None], n_done: Array) -> NoReturn:
    """The child's part: what it says of its end, and the core it would leave, go nowhere."""
    try:
        faulthandler.disable()
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        os.environ["GGML_NO_BACKTRACE"] = "1"
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(1, 2)
        for (weights, qtype, importance), out in list(zip(cases, outs, strict=True))[n_done[0] :]:
            assert out is not None
            encode_into(as_float32(weights), qtype, importance, out)
            n_done[0] += 1
    finally:
        os._exit(0)


def decode(blocks: Array, qtype: QType, n_per_row: int) -> Array:
    """`dequantize_row_*` on uint8 [n_rows, row bytes]; returns float32 [n_rows, n_per_row]."""
    blocks = np.ascontiguousarray(blocks)
    out = np.empty((len(blocks), n_per_row), np.float32)
    name = {"MXFP4": "mxfp4"}.get(qtype.name, qtype.name.lower().replace("_k", "_K"))
    function = getattr(library(), f"dequantize_row_{name}")
    function.restype = None
    function.argtypes = [ctypes.c_void_p, FLOAT_P, ctypes.c_int64]
    function(blocks.ctypes.data, _floats(out), out.size)
    return out


def sizes(qtype: QType) -> tuple[str, int, int]:
    """The type as ggml knows it: its name in small letters, and the weights and bytes of a block."""
    lib = library()
    lib.ggml_type_name.restype = ctypes.c_char_p
    lib.ggml_blck_size.restype = ctypes.c_int64
    lib.ggml_type_size.restype = ctypes.c_size_t
    name, number = lib.ggml_type_name(int(qtype)), int(qtype)
    return name.decode().lower(), lib.ggml_blck_size(number), lib.ggml_type_size(number)


# -- ggml's kernels


class _InitParams(ctypes.Structure):
    """ggml.h: struct ggml_init_params."""

    _fields_ = (
        ("mem_size", ctypes.c_size_t),
        ("mem_buffer", ctypes.c_void_p),
        ("no_alloc", ctypes.c_bool),
    )


class _Graph:
    """A graph of one operation in memory of its own, computed by ggml's CPU kernels with one thread."""

    MEMORY = 16 << 20

    def __init__(self) -> None:
        pointer, size = ctypes.c_void_p, ctypes.c_int64
        self._declare("ggml_init", pointer, _InitParams)
        self._declare("ggml_free", None, pointer)
        self._declare("ggml_get_data", pointer, pointer)
        self._declare("ggml_new_tensor_4d", pointer, pointer, ctypes.c_int, size, size, size, size)
        self._declare("ggml_new_graph", pointer, pointer)
        self._declare("ggml_build_forward_expand", None, pointer, pointer)
        self._declare("ggml_graph_compute_with_ctx", ctypes.c_int, pointer, pointer, ctypes.c_int)
        self._declare("ggml_mul_mat", pointer, pointer, pointer, pointer)
        float_ = ctypes.c_float
        self._declare("ggml_flash_attn_ext", pointer, *[pointer] * 5, float_, float_, float_)
        library().ggml_cpu_init()
        self.context = library().ggml_init(_InitParams(self.MEMORY, None, False))

    @staticmethod
    def _declare(name: str, result: Any, *arguments: Any) -> None:
        function = getattr(library(), name)
        function.restype, function.argtypes = result, arguments

    def tensor(self, qtype: QType, values: Array, *shape: int) -> int:
        """A tensor with these bytes; the shape has its innermost axis first, as ggml's `ne`."""
        values = np.ascontiguousarray(values)
        tensor = library().ggml_new_tensor_4d(self.context, int(qtype), *shape, *[1] * (4 - len(shape)))
        ctypes.memmove(library().ggml_get_data(tensor), values.ctypes.data, values.nbytes)
        return int(tensor)

    def computed(self, result: int, *shape: int) -> Array:
        """The values f32 of the tensor that an operation gave, in a shape with its innermost axis last."""
        graph = library().ggml_new_graph(self.context)
        library().ggml_build_forward_expand(graph, result)
        assert library().ggml_graph_compute_with_ctx(self.context, graph, 1) == 0
        out = np.empty(shape, np.float32)
        ctypes.memmove(out.ctypes.data, library().ggml_get_data(result), out.nbytes)
        library().ggml_free(self.context)
        return out


def multiply(blocks: Array, qtype: QType, x: Array) -> Array:
    """`ggml_mul_mat` of x f32 [t, n_per_row] with blocks uint8 [n_rows, row bytes]: f32 [t, n_rows]."""
    graph = _Graph()
    weights = graph.tensor(qtype, blocks, x.shape[1], len(blocks))
    inputs = graph.tensor(QType.F32, x, x.shape[1], len(x))
    return graph.computed(library().ggml_mul_mat(graph.context, weights, inputs), len(x), len(blocks))


def attend(q: Array, k: Array, v: Array, scale: float) -> Array:
    """`ggml_flash_attn_ext`, causal, keys and values in float16.

    q f32 [t, H, d], k and v f32 [t, G, d] -> f32 [t, H, d].
    """
    graph = _Graph()
    n, _, width = q.shape
    by_head = [x.transpose(1, 0, 2) for x in (q, k, v)]
    mask = np.where(np.tri(n, dtype=bool), 0, -np.inf).astype(np.float16)
    tensors = [
        graph.tensor(qtype, x.astype(dtype), width, n, len(x))
        for x, qtype, dtype in zip(
            by_head, (QType.F32, QType.F16, QType.F16), (np.float32, np.float16, np.float16), strict=True
        )
    ]
    tensors.append(graph.tensor(QType.F16, mask, n, n))
    result = library().ggml_flash_attn_ext(graph.context, *tensors, scale, 0.0, 0.0)
    return graph.computed(result, *q.shape)
