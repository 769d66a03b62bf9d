"""What llama-imatrix keeps of the first 8 chunks of the bench's calibration text, cut to 64 columns.

    llama-imatrix -m harmony-nano-BF16.gguf -f ../shared/bench/texts/calibration.txt --chunks 8 --no-ppl -o 8.gguf
    python tests/golden/make_imatrix.py 8.gguf

llama.cpp at commit 0c1e57098bba43ac29e6e3b677cdceebdd22334f, x86-64 with AVX512_BF16; the BF16 file is its converter's.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from gguf import GGUFReader

GOLDEN = Path(__file__).parent / "imatrix-8-chunks.npz"
N_COLUMNS = 64


def main() -> None:
    tensors = {tensor.name: np.asarray(tensor.data) for tensor in GGUFReader(sys.argv[1]).tensors}
    columns = {name: np.atleast_2d(values)[:, :N_COLUMNS] for name, values in tensors.items()}
    np.savez_compressed(GOLDEN, allow_pickle=False, **columns)


if __name__ == "__main__":
    main()
