"""What llama.cpp makes of each token of the first 6 chunks of the bench's code: KLD, likelihoods, the top token.

    moe-gguf export harmony-nano -t BF16 -t Q8_0 -t Q4_K_M -t Q4_0 -o out
    llama-perplexity -m out/TYPE.gguf -f ../shared/bench/texts/code.txt --chunks 6 --save-all-logits TYPE.logits
    python tests/golden/make_perplexity.py BF16.logits Q8_0.logits Q4_K_M.logits Q4_0.logits

llama.cpp as llama-cpp-python 0.3.36 brings it, x86-64 with AVX2, two threads. Its own summary of these runs
(--kl-divergence): mean KLD .000169, .005598 and .007712, RMS of the change of p .293, 1.707 and 2.035 %. With other
kernels it is as far from these as we are: with `-fa off` Q8_0 has .000175 and .303 %.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from calibration.judging.logits_file import LogitsFile

GOLDEN = Path(__file__).parent / "perplexity-6-chunks.npz"
FLOOR = -16.0  # perplexity.cpp: less likely tokens do not count


def main() -> None:
    base, *files = (LogitsFile(Path(name)) for name in sys.argv[1:])
    targets = base.tokens[:, base.n_ctx // 2 + 1 :].reshape(-1)
    log_p = all_log_probs(base)
    columns = {"nll_BF16": -log_p[np.arange(len(targets)), targets]}
    for file in files:
        name, log_q = file.path.stem, all_log_probs(file)
        terms = np.where(log_p > FLOOR, np.exp(log_p) * (log_p - log_q), 0)
        columns[f"kld_{name}"] = terms.sum(axis=1)
        columns[f"nll_{name}"] = -log_q[np.arange(len(targets)), targets]
        same = log_q.argmax(axis=1) == log_p.argmax(axis=1)
        columns[f"same_top_{name}"] = same
        dp = np.exp(-columns[f"nll_{name}"]) - np.exp(-columns["nll_BF16"])
        print(
            name,
            f"{columns[f'kld_{name}'].mean():.6f} {100 * np.sqrt((dp**2).mean()):.3f} {100 * same.mean():.3f}",
        )
    narrow = {
        name: values if values.dtype == bool else values.astype(np.float32)
        for name, values in columns.items()
    }
    np.savez_compressed(GOLDEN, allow_pickle=False, **narrow)


def all_log_probs(file: LogitsFile) -> np.ndarray:
    """ln p of every token at every scored place, f64 [n, V]; they were rounded to 16 bits, so they are scaled anew."""
    log = np.concatenate([file.log_probs(chunk) for chunk in range(file.n_chunk)]).astype(np.float64)
    scaled: np.ndarray = log - np.log(np.exp(log).sum(axis=1, keepdims=True))
    return scaled


if __name__ == "__main__":
    main()
