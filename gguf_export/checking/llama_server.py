"""llama.cpp's server in a process that does nothing else: a stranger's file or template may make it abort.

Nothing of this project is imported here, nor by the workers that use it.
"""

from __future__ import annotations

import json
import os
import sys
import urllib.request
from collections.abc import Callable
from typing import Any

__all__ = ["answer", "loaded", "post"]


def answer(work: Callable[[Any], Any]) -> None:
    """Do what is asked on standard input, write the answer to standard output, and end the process.

    Args:
        work: what was asked -> the answer, both as JSON takes them.
    """
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what llama.cpp prints is no answer
    json.dump(work(json.load(sys.stdin)), answers)
    answers.flush()
    os._exit(0)  # a server that ends in order takes seconds


def loaded(file: str, n_ctx: int, n_thread: int = 1) -> Any:
    """xllamacpp's server with a GGUF file; it ends when nobody holds it."""
    import xllamacpp  # noqa: PLC0415 - an extra

    params = xllamacpp.CommonParams()
    params.model.path = file
    params.n_ctx = n_ctx
    params.n_parallel = 1
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = n_thread
    params.n_threads_http = 2
    params.n_gpu_layers = 0
    params.cache_ram_mib = 0
    params.fit_params = params.warmup = params.ui = params.prefill_assistant = False
    params.use_jinja = True
    params.verbosity = 1  # errors only
    return xllamacpp.Server(params)


def post(server: Any, place: str, body: dict[str, Any], seconds: float) -> dict[str, Any]:
    """What the server answers at a place such as "/apply-template".

    Raises:
        urllib.error.HTTPError: it refuses.
    """
    address = f"{server.listening_address}{place}"
    request = urllib.request.Request(address, json.dumps(body).encode(), {"Content-Type": "application/json"})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a loopback address needs no proxy
    with opener.open(request, timeout=seconds) as told:
        found: dict[str, Any] = json.load(told)
    return found
