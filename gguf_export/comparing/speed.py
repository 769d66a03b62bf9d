"""Tokens per second of GGUF files in llama.cpp, through xllamacpp: each file in a process of its own.

llama.cpp ends the process that it is in where a file displeases it, and keeps memory of one model beside the next.
"""

from __future__ import annotations

import json
import statistics
import subprocess
from dataclasses import replace
from pathlib import Path

from gguf_export.checking.llama_process import PACKAGE, ask, program
from gguf_export.comparing.results import ModelResult, Results, Speed, SpeedTest
from quantize.containers.untrusted import quoted
from quantize.engine import n_processor
from quantize.exceptions import ChoiceError
from quantize.telling import Note, OnProgress, Progress, Remark, discard, silent

__all__ = ["measure_speed", "speed_test", "with_speeds"]

N_PROMPT, N_GENERATED = 512, 64
SECONDS = 3600  # for all runs with a large file on a slow processor


def speed_test() -> SpeedTest:
    """How speed would be measured here.

    Raises:
        ChoiceError: xllamacpp is not installed.
    """
    llama_cpp = program()
    if llama_cpp is None:
        raise ChoiceError(
            "", f"speed is measured by {PACKAGE}, which is not installed", 'pip install "moe-gguf[release]"'
        )
    return SpeedTest(llama_cpp, n_processor(), N_PROMPT, N_GENERATED)


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
    arguments: list[str | int] = [str(path.absolute()), test.n_thread, test.n_prompt, test.n_generated]
    try:
        done = ask("gguf_export.comparing.speed_worker", arguments, None, SECONDS)
    except subprocess.TimeoutExpired:
        note(Remark(str(path), f"its speed is not known: llama.cpp took more than {SECONDS} seconds"))
        return None
    try:
        runs = json.loads(done.stdout) if done.returncode == 0 else None
        if runs:
            return Speed(*(statistics.median(float(run[key]) for run in runs) for key in ("pp", "tg")))
    except (ValueError, KeyError, TypeError):
        pass
    said = done.stderr.decode("utf-8", "backslashreplace").strip().splitlines()
    reason = quoted(said[-1])[1:-1] if said else f"the process ended with status {done.returncode}"
    note(Remark(str(path), f"its speed is not known: llama.cpp could not run it ({reason})"))
    return None
