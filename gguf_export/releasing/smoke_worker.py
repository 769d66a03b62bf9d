"""The process in which llama.cpp loads one finished file and answers once: a file that displeases it may make it abort.

`python -c ... FILE` reads a dialogue from its standard input and writes what llama.cpp generated. Nothing of this
project is imported here.
"""

from __future__ import annotations

import json
import math
import os
import sys
import urllib.error
import urllib.request
from typing import Any

__all__ = ["main"]

SECONDS = 600  # for one answer of a large model on a processor


def main(file: str, n_thread: int) -> None:
    """Load a GGUF file, apply its template to the dialogue where it has one, and generate some tokens."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what llama.cpp prints is no answer
    asked = json.load(sys.stdin)
    import xllamacpp  # noqa: PLC0415 - an extra

    params = xllamacpp.CommonParams()
    params.model.path = file
    params.n_ctx = 512
    params.n_parallel = 1
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = n_thread
    params.n_threads_http = 2
    params.n_gpu_layers = 0
    params.cache_ram_mib = 0
    params.fit_params = params.warmup = params.ui = params.prefill_assistant = False
    params.use_jinja = True
    params.verbosity = 1  # errors only
    server = xllamacpp.Server(params)  # it ends when nobody holds it
    json.dump(_answer(server.listening_address, asked), answers)
    answers.flush()
    os._exit(0)  # a server that ends in order takes seconds


def _answer(address: str, asked: dict[str, Any]) -> dict[str, Any]:
    try:
        prompt = asked["plain"]
        if asked["has_template"]:
            body = {"messages": asked["messages"], "add_generation_prompt": True}
            prompt = _post(f"{address}/apply-template", body)["prompt"]
        body = {
            "prompt": prompt,
            "n_predict": asked["n_token"],
            "temperature": 0,
            "n_probs": 1,
            "cache_prompt": False,
            "return_tokens": True,
        }
        made = _post(f"{address}/completion", body)
    except urllib.error.HTTPError as refusal:
        return {"fault": refusal.read().decode("utf-8", "replace")[:4000]}
    told = made.get("completion_probabilities", [])
    scores = [token.get("logprob") for token in told if isinstance(token, dict)]
    is_finite = all(isinstance(score, int | float) and math.isfinite(score) for score in scores)
    return {"text": made["content"], "n_token": len(made.get("tokens", [])), "is_finite": is_finite}


def _post(address: str, body: dict[str, Any]) -> dict[str, Any]:
    request = urllib.request.Request(address, json.dumps(body).encode(), {"Content-Type": "application/json"})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a loopback address needs no proxy
    with opener.open(request, timeout=SECONDS) as answer:
        found: dict[str, Any] = json.load(answer)
    return found
