"""Write tests/golden/products.npz: what ggml's CPU kernels make of activations, by type of weights, and attention.

Run `python tests/golden/make_products.py` where xllamacpp is installed, on x86-64 (build 2026.10.11549). The weights
are the first rows of golden/blocks, and `y_TYPE` f32 [t, n_row] is the product of `x` f32 [t, 512] with them; `mixed`
f32 [t, H, d] is causal attention of `q`, `k` and `v` with keys and values in float16.
"""

from __future__ import annotations

import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS.parent), str(TESTS / "helpers")]

import ggml  # noqa: E402
import numpy as np  # noqa: E402
from block_checks import BLOCKS  # noqa: E402

from quantize.blocks import WRITABLE  # noqa: E402

N_ROW = 2  # the other rows hold numbers that float16 does not
N_TOKEN = 64  # ggml_fa_tile_config::Q (ggml-cpu/common.h): shorter texts pass attention one query at a time


def main() -> None:
    """Write the file anew."""
    rng = np.random.default_rng(17)
    arrays = {"x": (3 * rng.standard_t(3, (4, 512))).astype(np.float32)}
    for qtype in WRITABLE:
        golden = np.load(BLOCKS / f"{qtype.name.lower()}.npz")
        blocks = golden["plain" if "plain" in golden else "weighted"][:N_ROW]
        arrays[f"y_{qtype.name}"] = ggml.multiply(blocks, qtype, arrays["x"])
    arrays |= {
        name: (2 * rng.standard_normal((N_TOKEN, n_head, 16))).astype(np.float32)
        for name, n_head in (("q", 2), ("k", 1), ("v", 1))
    }
    arrays["mixed"] = ggml.attend(arrays["q"], arrays["k"], arrays["v"], 0.25)
    np.savez_compressed(TESTS / "golden" / "products.npz", allow_pickle=False, **arrays)


if __name__ == "__main__":
    main()
