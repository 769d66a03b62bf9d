"""Kernels compiled before they are needed, several at once.

numba compiles one kernel at a time in a process, whatever its threads. So where several encoders are not in its cache,
processes of their own compile them and fill the cache, from which this one then loads. Where there is no cache, or no
such process can be started, this one compiles.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from queue import Empty, SimpleQueue

import numba
import numpy as np
import numpy.typing as npt

from quantize.blocks import block_format
from quantize.blocks.kernel_cache import NotKept, is_kept, loading_only
from quantize.blocks.tiles import copy_rows
from quantize.codec import encode
from quantize.engine import n_processor
from quantize.guide import Guide
from quantize.telling import OnProgress, Progress, silent
from quantize.tensors import QType

__all__ = ["compile_kernels", "main"]

STAGE = "compiling kernels"
MOST_PROCESSES = 8  # of which each takes some 200 MB
_BOOT = "import sys; sys.path[:0] = {paths!r}; from quantize.compiling import main; main()"

Encoder = tuple["np.dtype[np.generic]", QType, bool]
"""The type of the weights, the tensor type, and whether importances weigh."""


def compile_kernels(jobs: Iterable[tuple[npt.DTypeLike, QType, bool]], progress: OnProgress = silent) -> None:
    """Compile, or load from numba's cache, the encoders that are about to be used, and say so.

    Args:
        jobs: (type of the weights, tensor type, with importance?) of each encoder; repetitions are free.
        progress: told before each kernel and at the end: stage "compiling kernels".
    """
    wanted = list(
        dict.fromkeys(
            (np.dtype(np.float32 if np.dtype(dtype) == np.float16 else dtype), qtype, with_importance)
            for dtype, qtype, with_importance in jobs
        )
    )
    n_done = 0

    def tell(n_more: int) -> None:
        nonlocal n_done
        n_done += n_more
        progress(Progress(STAGE, n_done, len(wanted), "kernels"))

    tell(0)
    missing = []
    for job in wanted:
        if _is_loaded(job):
            tell(1)
        else:
            missing.append(job)
    by_type = [[job for job in missing if job[1] == qtype] for qtype in {job[1] for job in missing}]
    n_process = min(len(by_type), n_processor(), MOST_PROCESSES)
    if n_process > 1 and is_kept(copy_rows):
        for job in _compiled_by_processes(by_type, n_process):
            _use(job)
            missing.remove(job)
            tell(1)
    for job in missing:
        _use(job)
        tell(1)


def _use(job: Encoder) -> None:
    """Encode a block, for which all kernels of the encoder are compiled or loaded."""
    dtype, qtype, with_importance = job
    form = block_format(qtype)
    n = form.block_size
    is_guided = with_importance or form.needs_importance
    encode(np.zeros((1, n), dtype), qtype, Guide(np.ones(n, np.float32)) if is_guided else None)


def _is_loaded(job: Encoder) -> bool:
    """Load the kernels of an encoder; whether all of them were in the cache, or could not be there."""
    try:
        with loading_only():
            _use(job)
    except NotKept:
        return False
    return True


def _compiled_by_processes(by_type: Sequence[Sequence[Encoder]], n_process: int) -> Iterator[Encoder]:
    """The encoders that processes have compiled, one by one; those that are not given must be compiled here.

    Those of one tensor type have most kernels in common, and are compiled by one process.
    """
    waiting: SimpleQueue[Sequence[Encoder]] = SimpleQueue()
    done: SimpleQueue[Encoder | None] = SimpleQueue()
    for jobs in sorted(by_type, key=_size, reverse=True):
        waiting.put(jobs)
    n_left = 0
    with ExitStack() as stack:
        for _ in range(n_process):
            with suppress(OSError):
                worker = stack.enter_context(_process())
                threading.Thread(target=_lead, args=(worker, waiting, done), daemon=True).start()
                n_left += 1
        while n_left:
            job_done = done.get()
            if job_done is None:
                n_left -= 1
            else:
                yield job_done


def _size(jobs: Sequence[Encoder]) -> tuple[int, int]:
    """Roughly how long it takes: formats of large blocks and few bits have the longest searches."""
    qtype = jobs[0][1]
    return qtype.block_size, -qtype.type_size


@contextmanager
def _process() -> Iterator[subprocess.Popen[str]]:
    """A process that compiles what it is told, a line for each encoder; it ends with the block."""
    paths = [str(Path(__file__).parents[1]), *(path for path in sys.path if path)]
    words = [sys.executable, "-I", "-X", "utf8", "-c", _BOOT.format(paths=paths)]
    folder = getattr(numba.config, "CACHE_DIR", "")
    env = {**os.environ, **({"NUMBA_CACHE_DIR": str(folder)} if folder else {})}
    pipe = subprocess.PIPE
    worker = subprocess.Popen(words, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True, env=env)
    try:
        yield worker
    finally:
        worker.kill()
        worker.communicate()


def _lead(
    worker: subprocess.Popen[str],
    waiting: SimpleQueue[Sequence[Encoder]],
    done: SimpleQueue[Encoder | None],
) -> None:
    """Give one process the encoders of type after type, until none is left or it ends."""
    with suppress(Empty, OSError, ValueError):
        while True:
            for job in waiting.get_nowait():
                if not _asked(worker, job):
                    raise ChildProcessError
                done.put(job)
    done.put(None)


def _asked(worker: subprocess.Popen[str], job: Encoder) -> bool:
    """Whether the process has compiled an encoder."""
    assert worker.stdin is not None and worker.stdout is not None
    dtype, qtype, with_importance = job
    worker.stdin.write(f"{dtype.str} {qtype.name} {int(with_importance)}\n")
    worker.stdin.flush()
    return worker.stdout.readline() != ""


def main() -> None:
    """Compile the encoders that standard input names, and answer each with a line."""
    for line in sys.stdin:
        dtype, name, with_importance = line.split()
        _use((np.dtype(dtype), QType[name], with_importance == "1"))
        sys.stdout.write("\n")
        sys.stdout.flush()
