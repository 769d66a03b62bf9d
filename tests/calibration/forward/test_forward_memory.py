"""Matrices are freed when they have been used: what a pass holds at once, and its peak in a process of its own."""

from __future__ import annotations

import subprocess
import sys
import weakref
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from pico import pico_mixtral
from places import ROOT

from calibration.forward import feed_forward, layers
from calibration.forward.layers import Linear, Widened
from calibration.forward.run import forward
from calibration.forward.settings import ForwardSettings
from calibration.forward.streams import Given, Stream
from quantize.sources.checkpoint import Checkpoint
from quantize.tensors import Array, Rows, TensorSpec

TOKENS = np.random.default_rng(5).integers(0, 320, (3, 48)).astype(np.int32)


class Counting(Checkpoint):
    """Counts the matrices of experts whose stored bytes are in memory."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.live: Counter[str] = Counter()
        self.most: Counter[str] = Counter()

    def read_blocks(self, spec: TensorSpec, xid: int = 0, rows: Rows | None = None) -> Array:
        """As the checkpoint's."""
        blocks = super().read_blocks(spec, xid, rows)
        if spec.has_experts:
            owner = blocks
            while isinstance(owner.base, np.ndarray):
                owner = owner.base
            self.live["expert"] += 1
            self.most |= self.live
            weakref.finalize(owner, self.live.subtract, ["expert"])
        return blocks


def ignore(_spec: TensorSpec, _xid: int, _weights: Array, _given: Given) -> None:
    """Take weights, and keep none."""


@pytest.mark.parametrize(
    ("dtype", "brief", "is_wanted", "n_most"),
    [
        (torch.float32, 0, False, 1),  # widened as a whole, and freed
        (torch.float32, 0, True, 1),
        (torch.float32, 10**6, False, 3),  # gate, up and down, as they are stored
        (torch.bfloat16, 0, True, 3),
    ],
)
def test_matrices_of_one_expert(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    dtype: torch.dtype,
    brief: int,
    is_wanted: bool,
    n_most: int,
) -> None:
    source = Counting(pico_mixtral(tmp_path / "m", n_layer=2, n_expert=4, tokenizer=False))
    monkeypatch.setattr(feed_forward, "BRIEF", brief)
    forward(
        [Stream(source)],
        TOKENS,
        settings=ForwardSettings(dtype=dtype),
        on_weights=ignore if is_wanted else None,
    )
    assert source.most["expert"] == n_most
    assert not source.live["expert"]


@pytest.mark.numeric
@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(700, 64), (256, 96), (10, 32)])
def test_a_matrix_widened_in_pieces(
    monkeypatch: pytest.MonkeyPatch, stored: torch.dtype, shape: tuple[int, int]
) -> None:
    random = torch.Generator().manual_seed(3)
    weight, bias = torch.randn(shape, generator=random).to(stored), torch.randn(shape[0], generator=random)
    x = torch.randn(5, shape[1], generator=random)
    monkeypatch.setattr(layers, "WIDENED", 1)

    def rows(first: int, last: int) -> torch.Tensor:
        return weight[first:last]

    for of_product in (None, bias):
        wanted, found = Linear(weight.float(), of_product)(x), Widened(rows, *shape, of_product)(x)
        assert found.dtype == torch.float32
        assert torch.allclose(found, wanted, rtol=1e-6, atol=1e-6)
    product = Widened(rows, *shape)
    assert product(x[:0]).shape == (0, shape[0])
    assert torch.equal(product(x[None]), product(x)[None])


STATUS = Path("/proc/self/status")

MEASURE = """
import sys
from pathlib import Path
import numpy as np
import torch
from calibration.forward.settings import ForwardSettings
from calibration.importance.observers import collect_imatrix
from calibration.text.chunks import Chunks
from quantize.sources.checkpoint import open_checkpoint
def field(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith(name)))
torch.set_num_threads(2)
tokens = np.random.default_rng(1).integers(3, 2000, (4, 512)).astype(np.int32)
source = open_checkpoint(Path(sys.argv[1]))
before = field("VmRSS")
settings = ForwardSettings(dtype=getattr(torch, sys.argv[2]))
collect_imatrix(source, Chunks(("text",), tokens, None), settings=settings)
print(field("VmHWM") - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not STATUS.exists(), reason="peak memory is read from /proc, which Linux has")
def test_the_peak_of_a_wide_model(tmp_path: Path) -> None:
    """Half of Harmony's width: an expert has 88 MB in bfloat16, the activations of a group of tokens 88 in float32."""
    model = tmp_path / "m"
    sizes = {
        "layers": 1,
        "experts": 2,
        "n-embd": 2048,
        "n-ff": 7168,
        "vocab": 2000,
        "n-head": 16,
        "n-head-kv": 4,
    }
    make = [sys.executable, str(ROOT / "scripts" / "make_synthetic.py"), str(model)]
    make += [word for name, size in sizes.items() for word in (f"--{name}", str(size))]
    subprocess.run(make, check=True, capture_output=True)
    measure = [sys.executable, "-c", MEASURE, str(model), "float32"]
    peak = int(subprocess.run(measure, check=True, capture_output=True, text=True).stdout)
    assert peak < 400 << 20
