"""Memory does not grow with the model: exports of checkpoints too large for a few slabs, in processes of their own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from places import ROOT

STATUS = Path("/proc/self/status")
pytestmark = pytest.mark.skipif(not STATUS.exists(), reason="peak memory is read from /proc, which Linux has")

SHAPES = ["--n-embd", "1024", "--n-ff", "3584", "--vocab", "2000", "--n-head", "8", "--n-head-kv", "2"]

MEASURE = """
import sys
from pathlib import Path
from gguf_export.writing.export import prepare, run
from quantize.recipes.ftypes import ftype
from quantize.recipes.recipe import Recipe
from quantize.sources.checkpoint import open_checkpoint
checkpoint = open_checkpoint(Path(sys.argv[1]))
recipes = [Recipe(ftype(name)) for name in ("Q4_K_M", "Q8_0")]
run(prepare(checkpoint, recipes, Path(sys.argv[2])), jobs=2)
# Not getrusage: its peak begins with that of the process that started this one.
lines = Path("/proc/self/status").read_text().splitlines()
peak = next(line.split()[1] for line in lines if line.startswith("VmHWM"))
print(1024 * int(peak), checkpoint.n_bytes)
"""


def peak_and_size(folder: Path, n_layer: int) -> tuple[int, int]:
    """Peak resident bytes of an export to two types with two threads, and the bytes of its checkpoint."""
    model = folder / f"model-{n_layer}"
    make = [sys.executable, str(ROOT / "scripts" / "make_synthetic.py"), str(model), "--layers", str(n_layer)]
    subprocess.run([*make, *SHAPES], check=True, capture_output=True)
    measure = [sys.executable, "-c", MEASURE, str(model), str(folder / f"out-{n_layer}")]
    peak, size = subprocess.run(measure, check=True, capture_output=True, text=True).stdout.split()
    return int(peak), int(size)


@pytest.mark.slow
def test_peak_does_not_grow_with_layers(tmp_path: Path) -> None:
    peak_and_size(tmp_path / "warm", 1)  # kernels are compiled, and cached
    small, small_size = peak_and_size(tmp_path, 1)
    large, large_size = peak_and_size(tmp_path, 4)
    assert large_size - small_size > 200 * 2**20
    assert large - small < 60 * 2**20
    assert large < 600 * 2**20
