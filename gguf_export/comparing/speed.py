"""Tokens per second of GGUF files in llama.cpp, through xllamacpp: each file in a process of its own.

llama.cpp ends the process that it is in where a file displeases it, and keeps memory of one model beside the next.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from dataclasses import replace
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from gguf_export.comparing.results import ModelResult, Results, Speed, SpeedTest
from quantize.containers.untrusted import quoted
from quantize.exceptions import ChoiceError
from quantize.telling import Note, OnProgress, Progress, Remark, discard, silent

__all__ = ["measure_speed", "speed_test", "with_speeds"]

PACKAGE = "xllamacpp"
N_PROMPT, N_GENERATED = 512, 64
N_RUN = 3
TOKENS = range(20, 220)
"""Ids that every vocabulary has; which tokens they are makes no difference to the time."""


def speed_test() -> SpeedTest:
    """How speed would be measured here.

    Raises:
        ChoiceError: xllamacpp is not installed.
    """
    if find_spec(PACKAGE) is None:
        raise ChoiceError(
            "", f"speed is measured by {PACKAGE}, which is not installed", 'pip install "moe-gguf[release]"'
        )
    return SpeedTest(f"{PACKAGE} {metadata.version(PACKAGE)}", _n_thread(), N_PROMPT, N_GENERATED)


def _n_thread() -> int:
    """The processors that this process may use."""
    usable = getattr(os, "sched_getaffinity", None)
    return len(usable(0)) if usable is not None else os.cpu_count() or 1


def with_speeds(
    results: Results,
    files: dict[str, Path],
    *,
    progress: OnProgress = silent,
    note: Note = discard,
) -> Results:
    """The results with the speed of each file.

    Args:
        results: of a comparison.
        files: label of a model -> its file, or the first part of it.
        progress: told the files that are measured.
        note: told the files that llama.cpp could not run, and why.

    Raises:
        ChoiceError: xllamacpp is not installed.
    """
    test = speed_test()
    models: list[ModelResult] = []
    for model in results.models:
        path = files.get(model.label)
        progress(Progress("speed", len(models), len(results.models), unit="files"))
        models.append(model if path is None else replace(model, speed=measure_speed(path, test, note)))
    progress(Progress("speed", len(models), len(models), unit="files"))
    return replace(results, models=tuple(models), speed_test=test)


def measure_speed(path: Path, test: SpeedTest, note: Note = discard) -> Speed | None:
    """Tokens per second of one file, the median of some runs; None where llama.cpp cannot run it.

    Args:
        path: of the file, or the first part of it.
        test: how it is measured.
        note: told why it could not be.
    """
    words = [str(path.absolute()), str(test.n_thread), str(test.n_prompt), str(test.n_generated)]
    done = subprocess.run(
        [sys.executable, "-m", __spec__.name if __spec__ else __name__, *words],
        check=False,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="backslashreplace",
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    lines = done.stdout.splitlines()
    try:
        runs = json.loads(lines[-1]) if done.returncode == 0 and lines else None
        if runs:
            return Speed(*(statistics.median(float(run[key]) for run in runs) for key in ("pp", "tg")))
    except (ValueError, KeyError, TypeError):
        pass
    said = done.stderr.strip().splitlines()
    reason = quoted(said[-1])[1:-1] if said else f"the process ended with status {done.returncode}"
    note(Remark(str(path), f"its speed is not known: llama.cpp could not run it ({reason})"))
    return None


# -- in the process that runs one file


def _timed(path: str, n_thread: int, n_prompt: int, n_generated: int) -> list[dict[str, float]]:
    """Tokens per second of some runs behind a first one that warms up."""
    import xllamacpp  # noqa: PLC0415 - heavy, and may end the process

    params = xllamacpp.CommonParams()
    params.model.path = path
    params.n_ctx = n_prompt + n_generated
    params.n_parallel = 1
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = n_thread
    params.n_gpu_layers = 0
    params.cache_ram_mib = 0
    params.fit_params = params.warmup = params.ui = False
    params.verbosity = 1  # errors only
    server = xllamacpp.Server(params)
    runs = []
    for run in range(N_RUN + 1):
        prompt = [TOKENS[(run + index * index) % len(TOKENS)] for index in range(n_prompt - 1)]
        timings = _timings(server, prompt, n_generated if run else 1)
        runs.append({"pp": timings["prompt_per_second"], "tg": timings["predicted_per_second"]})
    return runs[1:]


def _timings(server: Any, prompt: list[int], n_generated: int) -> dict[str, float]:
    answer = server.handle_completions(
        {
            "prompt": prompt,
            "max_tokens": n_generated,
            "temperature": 0,
            "ignore_eos": True,
            "cache_prompt": False,
        }
    )
    timings: dict[str, float] = answer["timings"]
    return timings


if __name__ == "__main__":
    path, *counts = sys.argv[1:]
    sys.stdout.write(json.dumps(_timed(path, *map(int, counts))) + "\n")
