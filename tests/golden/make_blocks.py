"""Write tests/golden/blocks: small bf16 weights, an importance, and what ggml makes of them.

Run `python tests/golden/make_blocks.py` where xllamacpp is installed, on x86-64. The bytes are those of its
`ggml_quantize_chunk` (build 2026.10.11549), so that a clone without xllamacpp checks the encoders as well. Existing
files are left alone: golden bytes are written once.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS.parent), str(TESTS / "helpers")]

import ggml  # noqa: E402
import numpy as np  # noqa: E402
from block_checks import BLOCKS, for_type, importances, samples, to_bf16  # noqa: E402

from quantize.blocks import WRITABLE  # noqa: E402

NAMES = ("normal", "student", "far_negative", "spikes", "some_zero_blocks", "mixed_magnitudes")


def main() -> None:
    """Write what is missing."""
    BLOCKS.mkdir(parents=True, exist_ok=True)
    path = BLOCKS / "weights.npz"
    if not path.exists():
        rows = samples(n_rows=1, n_per_row=512)
        weights = to_bf16(np.concatenate([rows[name] for name in NAMES]))
        importance = importances(512)["usual"]
        assert importance is not None
        np.savez_compressed(path, weights=weights, importance=importance)
    data = np.load(path)
    for qtype in WRITABLE:
        path = BLOCKS / f"{qtype.name.lower()}.npz"
        if not path.exists():
            blocks: dict[str, Any] = {
                "plain" if importance is None else "weighted": ggml.encode(data["weights"], qtype, importance)
                for importance in for_type(qtype, None, data["importance"])
            }
            np.savez_compressed(path, **blocks)


if __name__ == "__main__":
    main()
