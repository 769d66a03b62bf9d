"""Files of logits as llama-perplexity writes them."""

from __future__ import annotations

from pathlib import Path

import numpy as np


def write_logits(path: Path, logits: np.ndarray, tokens: np.ndarray) -> None:
    """perplexity.cpp:log_softmax for --save-all-logits; logits f32 [n_chunk, n_scored, V], tokens [n_chunk, n_ctx]."""
    n_chunk, n_ctx = tokens.shape
    n_vocab = logits.shape[-1]
    with path.open("wb") as file:
        file.write(b"_logits_" + np.array([n_ctx, n_vocab, n_chunk], "<i4").tobytes())
        file.write(tokens.astype("<i4").tobytes())
        for row in logits.reshape(-1, n_vocab):
            high = row.max()
            low = max(row.min(), high - np.float32(16))
            lse = np.float32(np.log(np.exp(row - high).astype(np.float64).sum()))
            scale = np.float32((high - low) / np.float32(65535))
            codes = np.where(row > low, np.rint((row - low) * (np.float32(1) / scale)), 0).astype("<u2")
            file.write(np.array([scale, low - high - lse], "<f4").tobytes())
            file.write(codes.tobytes() + b"\0\0" * (n_vocab % 2))
