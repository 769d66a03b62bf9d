"""The process in which llama.cpp itself applies a model's chat template: a stranger's program may make it abort.

`python -c ... FILE` reads dialogues from its standard input and writes one text or refusal for each. Nothing of this
project is imported here.
"""

from __future__ import annotations

import json
import os
import sys
import urllib.error
import urllib.request
from typing import Any

__all__ = ["main"]

SECONDS = 20  # for one answer


def main(file: str) -> None:
    """Load a GGUF file and apply its template to dialogues by way of llama-server's `/apply-template`."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what llama.cpp prints is no answer
    dialogues = json.load(sys.stdin)
    import xllamacpp  # noqa: PLC0415 - an extra

    params = xllamacpp.CommonParams()
    params.model.path = file
    params.n_ctx = 64
    params.n_parallel = 1
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.n_threads_http = 2
    params.n_gpu_layers = 0
    params.cache_ram_mib = 0
    params.fit_params = params.warmup = params.ui = params.prefill_assistant = False
    params.use_jinja = True
    params.verbosity = 1  # errors only
    server = xllamacpp.Server(params)  # it ends when nobody holds it
    json.dump([_applied(server.listening_address, dialogue) for dialogue in dialogues], answers)
    answers.flush()
    os._exit(0)  # a server that ends in order takes seconds


def _applied(address: str, dialogue: dict[str, Any]) -> dict[str, str]:
    body = json.dumps(dialogue).encode()
    request = urllib.request.Request(f"{address}/apply-template", body, {"Content-Type": "application/json"})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a loopback address needs no proxy
    try:
        with opener.open(request, timeout=SECONDS) as answer:
            return {"text": json.load(answer)["prompt"]}
    except urllib.error.HTTPError as refusal:
        return {"fault": refusal.read().decode("utf-8", "replace")[:4000]}
