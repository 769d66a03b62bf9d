"""The width of vectors: an attribute of our kernels alone, told apart in the cache, of no consequence for bytes."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import llvmlite.binding
import numba
import numpy as np
import pytest

from quantize.blocks import jit, vector_width
from quantize.telling import RemarkWarning
from quantize.tensors import Array

ROOT = Path(__file__).parents[3]

PROGRAM = """
import numpy as np
from quantize.blocks import jit, lanes
value = lanes.rounded_to_half(np.float32(1.0001))
print(jit.WIDTH, sum(lanes.rounded_to_half.stats.cache_hits.values()), value)
"""


def computed(cache: Path, width: str) -> tuple[str, str, str]:
    """What a process with kernels of a width says: the width, hits of the cache, and a result."""
    env = os.environ | {"NUMBA_CACHE_DIR": str(cache), "PYTHONPATH": str(ROOT), vector_width.SETTING: width}
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    said, hits, value = done.stdout.split()
    return said, hits, value


def compiled(function: Callable[..., Any], width: int) -> Any:
    """A kernel without a cache."""
    njit: Any = numba.njit
    return njit(**vector_width.width_options(width))(function)


@pytest.mark.skipif(not jit.JIT, reason="nothing is compiled where NUMBA_DISABLE_JIT is set")
def test_each_width_has_its_own_cache(tmp_path: Path) -> None:
    width, hits, value = computed(tmp_path, "0")
    assert (width, hits) == ("0", "0")
    assert computed(tmp_path, "128") == ("128", "0", value)
    for width in ("0", "128"):
        assert computed(tmp_path, width) == (width, "1", value)


@pytest.mark.skipif(not jit.JIT, reason="nothing is compiled where NUMBA_DISABLE_JIT is set")
def test_our_kernels_alone_get_the_attribute() -> None:
    def doubled(x: float) -> float:
        return 2 * x

    ours, others = compiled(doubled, 512), compiled(doubled, 0)
    assert ours(2.5) == others(2.5) == 5
    (mine,), (other,) = ours.inspect_llvm().values(), others.inspect_llvm().values()
    assert '"prefer-vector-width"="512"' in mine
    assert "prefer-vector-width" not in other


@pytest.mark.skipif(not jit.JIT or platform.machine() != "x86_64", reason="of processors with AVX")
def test_the_width_is_that_of_the_code() -> None:
    def doubled(x: Array, y: Array) -> None:
        for i in range(64):
            y[i] = x[i] * 2

    features = llvmlite.binding.get_host_cpu_features()
    if not features.get("avx2") or {"NUMBA_CPU_NAME", "NUMBA_CPU_FEATURES"} & os.environ.keys():
        pytest.skip("no AVX2")
    vectors = {128: "<4 x float>", 256: "<8 x float>", 512: "<16 x float>"}
    for width in (128, 256, 512) if features.get("avx512vl") else (128, 256):
        kernel = compiled(doubled, width)
        kernel(np.ones(64, np.float32), np.ones(64, np.float32))
        (code,) = kernel.inspect_llvm().values()
        assert [vector for vector in vectors.values() if vector in code] == [vectors[width]]


def test_the_processor_or_the_user_gives_the_width(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(vector_width.SETTING, raising=False)
    for name, width in (("sapphirerapids", 512), ("cascadelake", 0), ("generic", 0)):
        monkeypatch.setattr(numba.config, "CPU_NAME", name)
        assert vector_width.vector_width() == width
    for wish in ("0", "256"):
        monkeypatch.setenv(vector_width.SETTING, wish)
        assert vector_width.vector_width() == int(wish)
    monkeypatch.setattr(numba.config, "CPU_NAME", None)
    monkeypatch.setattr(llvmlite.binding, "get_host_cpu_name", lambda: "icelake-server")
    monkeypatch.setenv(vector_width.SETTING, "1024")
    with pytest.warns(RemarkWarning, match="MOE_GGUF_VECTOR_WIDTH: '1024' is no width"):
        assert vector_width.vector_width() == 512


@pytest.mark.parametrize("gone", ["JITCodeLibrary", "Compiler"])
def test_without_numbas_private_parts_nothing_is_asked_for(
    gone: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = {"JITCodeLibrary": object, "Compiler": object}
    del parts[gone]
    monkeypatch.setattr(vector_width, "import_module", lambda _: SimpleNamespace(**parts))
    assert vector_width.width_options(512) == {}
    assert vector_width.width_options(0) == {}


def test_other_private_parts_are_compiled_without(monkeypatch: pytest.MonkeyPatch) -> None:
    """A library whose functions have no attributes, and a state that cannot be told of a library."""

    class Library:
        def __init__(self, *_: object) -> None:
            self.modules: list[object] = []

        def add_ir_module(self, ir_module: object) -> None:
            self.modules.append(ir_module)

    class Compiler:
        def __init__(self) -> None:
            self.state = SimpleNamespace(targetctx=SimpleNamespace(codegen=object), library=None)

        def define_pipelines(self) -> str:
            return "numba's own"

    monkeypatch.setattr(
        vector_width, "import_module", lambda _: SimpleNamespace(JITCodeLibrary=Library, Compiler=Compiler)
    )
    compiler = vector_width.width_options(512)["pipeline_class"]()
    assert compiler.define_pipelines() == "numba's own"
    assert compiler.state.library is None
