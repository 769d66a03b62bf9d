"""A real llama.cpp (xllamacpp's server) on one GGUF file, in a process of its own, on a loopback port of its own.

    with serve(file) as llama:
        ids = llama.tokenize("In the beginning")
        probs = llama.next_token_probs(ids)

Run as a program it is that process: `python llama.py FILE N_CTX` prints the server's address and serves until its
standard input ends, so it cannot outlive the test that started it.
"""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
import tempfile
import threading
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

N_THREADS = 1  # threads of ggml spin at barriers: on a busy machine one is faster than two for a small model
TIMEOUT = 600.0  # seconds for a file to load, and for one answer
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a loopback address needs no proxy


class LoadError(Exception):
    """llama.cpp refused the file; the message is its own."""


class Llama:
    """A running server. Probabilities are float64 arrays indexed by token id."""

    def __init__(self, address: str) -> None:
        self._address = address
        self.n_vocab = int(self._ask("/v1/models")["data"][0]["meta"]["n_vocab"])

    def _ask(self, path: str, **body: Any) -> Any:
        data = json.dumps(body).encode() if body else None
        request = urllib.request.Request(self._address + path, data, {"Content-Type": "application/json"})
        with _OPENER.open(request, timeout=TIMEOUT) as answer:
            return json.load(answer)

    def tokenize(self, text: str, *, add_special: bool = True, parse_special: bool = True) -> list[int]:
        """Token ids of a text, with BOS (if the file says so) unless `add_special` is off."""
        ids = self._ask("/tokenize", content=text, add_special=add_special, parse_special=parse_special)[
            "tokens"
        ]
        return [int(id_) for id_ in ids]

    def detokenize(self, ids: Sequence[int]) -> str:
        return str(self._ask("/detokenize", tokens=list(ids))["content"])

    def next_token_probs(self, ids: Sequence[int], *, cache_prompt: bool = False) -> np.ndarray:
        """Probabilities (V,) of the token after `ids`, before any sampler: softmax of the logits."""
        answer = self._ask(
            "/completion",
            prompt=list(ids),
            n_predict=1,
            n_probs=self.n_vocab,
            temperature=-1,
            post_sampling_probs=False,
            ignore_eos=True,  # else nothing is reported where EOS comes first; the probabilities do not change
            cache_prompt=cache_prompt,
        )
        probs = np.full(self.n_vocab, np.nan)
        for token in answer["completion_probabilities"][0]["top_logprobs"]:
            probs[token["id"]] = 0.0 if token["logprob"] is None else math.exp(token["logprob"])
        assert not np.isnan(probs).any(), "llama.cpp did not give every token a probability"
        return probs

    def all_next_token_probs(self, ids: Sequence[int]) -> np.ndarray:
        """Probabilities (T, V): row t is that of the token after `ids[: t + 1]`. Each token is evaluated once."""
        rows = [self.next_token_probs(ids[: t + 1], cache_prompt=True) for t in range(len(ids))]
        return np.stack(rows)

    def complete(self, prompt: str, n_predict: int = 32) -> str:
        """The greedy continuation of a prompt."""
        answer = self._ask(
            "/completion", prompt=prompt, n_predict=n_predict, temperature=0, cache_prompt=False, seed=0
        )
        return str(answer["content"])


@contextmanager
def serve(file: str | Path, n_ctx: int = 512) -> Iterator[Llama]:
    """llama.cpp on a file. Raises LoadError with llama.cpp's own words if it does not load."""
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [sys.executable, __file__, str(file), str(n_ctx)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            guard = threading.Timer(TIMEOUT, process.kill)
            guard.start()
            address = process.stdout.readline().strip()  # an empty line: the process has ended
            guard.cancel()
            if not address:
                process.wait(TIMEOUT)
                log.seek(0)
                raise LoadError(_reason(log.read().decode(errors="replace"), process.returncode))
            yield Llama(address)
        finally:
            process.stdin.close()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            process.stdout.close()


def load_error(file: str | Path) -> str | None:
    """What llama.cpp says when it cannot load the file; None if it loads."""
    try:
        with serve(file):
            return None
    except LoadError as error:
        return str(error)


def _reason(log: str, status: int) -> str:
    """The line of llama.cpp's log that tells why it gave up."""
    reasons = re.findall(r"error loading model: (.*)|(GGML_ASSERT.*)", log)
    said = "; ".join(dict.fromkeys("".join(reason) for reason in reasons))
    return said or f"the server ended with status {status}: {log.strip()[-500:]}"


def _serve_forever(file: str, n_ctx: int) -> None:
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = file
    params.n_ctx = n_ctx
    params.n_parallel = 1
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = N_THREADS
    params.n_threads_http = 2
    params.n_gpu_layers = 0
    params.cache_ram_mib = 0
    params.fit_params = params.warmup = params.ui = False
    params.verbosity = 1  # errors only
    server = xllamacpp.Server(params)
    print(server.listening_address, flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    _serve_forever(sys.argv[1], int(sys.argv[2]))
