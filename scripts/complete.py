#!/usr/bin/env python3
"""Let a real llama.cpp (xllamacpp) complete a sentence with each of some GGUF files.

python scripts/complete.py FILE.gguf [FILE.gguf ...] [--prompt TEXT] [--tokens N]
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import xllamacpp


def complete(file: Path, prompt: str, n_predict: int) -> str:
    """The greedy continuation of a prompt."""
    params = xllamacpp.CommonParams()
    params.model.path = str(file)
    params.n_ctx = 512
    params.n_parallel = 1
    params.n_gpu_layers = 0
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1  # enough for a small model
    params.cache_ram_mib = 0
    params.fit_params = params.warmup = params.ui = False
    params.verbosity = 1  # errors only
    answer = xllamacpp.Server(params).handle_completions(
        {"prompt": prompt, "max_tokens": n_predict, "temperature": 0}
    )
    return str(answer["choices"][0]["text"])


def main() -> None:
    parser = argparse.ArgumentParser(description="Let llama.cpp complete a sentence with each file.")
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--prompt", default="And it came to pass in those days, that")
    parser.add_argument("--tokens", type=int, default=48)
    arguments = parser.parse_args()
    bold, plain = ("\033[1m", "\033[0m") if sys.stdout.isatty() else ("", "")
    for file in arguments.files:
        text = complete(file, arguments.prompt, arguments.tokens)
        print(f"\n{file.name} ({file.stat().st_size / 2**20:.1f} MiB)")
        print(f"  {arguments.prompt}{bold}{text.rstrip()}{plain}".replace("\n", "\n  "), flush=True)


if __name__ == "__main__":
    main()
