"""Kernels compiled before they are needed, several at once.

numba compiles one kernel at a time in a process, whatever its threads. So where several are not in its cache, this
process and others compile them side by side, the longest first, and this one then loads what the others have put into
the cache. Where there is no cache, or no such process can be started, this one compiles all.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import threading
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import NamedTuple

import numba
import numpy as np
import numpy.typing as npt

from quantize.blocks import block_format
from quantize.blocks.base import GroupFormat
from quantize.blocks.kernel_cache import Missing, NotKept, collecting, is_kept, loading_only
from quantize.blocks.tiles import copy_rows
from quantize.codec import decode, encode, first_non_finite
from quantize.engine import n_processor
from quantize.guide import Guide
from quantize.telling import OnProgress, Progress, silent
from quantize.tensors import QType

__all__ = ["Use", "compile_kernels", "compile_uses", "decoding", "encoding", "main", "scanning"]

STAGE = "compiling kernels"
MOST_PROCESSES = 8  # of which each takes some 200 MB
_BOOT = "import sys; sys.path[:0] = {paths!r}; from quantize.compiling import main; main()"

Unit = Callable[[], object]
"""What a process compiles in one go; it can be pickled."""


class Use(NamedTuple):
    """A call for which kernels are compiled or loaded; it can be pickled."""

    run: Unit
    is_divisible: bool
    """Whether its kernels may do nothing while they are listed: no other code needs or keeps what they write."""
    group: str = ""
    """Names those that are compiled in one go where their kernels cannot be told apart: they have most in common."""
    weight: int = 0
    """Roughly how long that takes."""


def compile_kernels(
    jobs: Iterable[tuple[npt.DTypeLike, QType, bool]],
    progress: OnProgress = silent,
    *,
    scanned: Iterable[npt.DTypeLike] = (),
) -> None:
    """Compile, or load from numba's cache, the encoders that are about to be used, and say so.

    Args:
        jobs: (type of the weights, tensor type, with importance?) of each encoder; repetitions are free.
        progress: told before, after each kernel, and at the end: stage "compiling kernels".
        scanned: types of weights that are looked at for what is not finite.
    """
    wanted = dict.fromkeys(
        (np.dtype(np.float32 if np.dtype(dtype) == np.float16 else dtype), qtype, with_importance)
        for dtype, qtype, with_importance in jobs
    )
    uses = [scanning(dtype) for dtype in dict.fromkeys(np.dtype(dtype) for dtype in scanned)]
    compile_uses([*uses, *(encoding(*job) for job in wanted)], progress)


def encoding(dtype: npt.DTypeLike, qtype: QType, with_importance: bool) -> Use:
    """The use of an encoder."""
    form = block_format(qtype)
    run = partial(_encode_block, np.dtype(dtype), qtype, with_importance)
    # Formats of large blocks and few bits have the longest searches.
    return Use(run, not isinstance(form, GroupFormat), qtype.name, form.block_size * 1000 - form.type_size)


def decoding(qtype: QType) -> Use:
    """The use of a decoder."""
    return Use(partial(_decode_block, qtype), not isinstance(block_format(qtype), GroupFormat), qtype.name)


def scanning(dtype: npt.DTypeLike) -> Use:
    """The use of the search for weights that are not finite."""
    return Use(partial(first_non_finite, np.zeros(1, dtype)), False, str(np.dtype(dtype)))


def _encode_block(dtype: np.dtype[np.generic], qtype: QType, with_importance: bool) -> None:
    form = block_format(qtype)
    n = form.block_size
    is_guided = with_importance or form.needs_importance
    encode(np.zeros((1, n), dtype), qtype, Guide(np.ones(n, np.float32)) if is_guided else None)


def _decode_block(qtype: QType) -> None:
    form = block_format(qtype)
    decode(np.zeros((1, form.type_size), np.uint8), qtype, form.block_size)


def compile_uses(uses: Sequence[Use], progress: OnProgress = silent) -> int:
    """Compile, or load from numba's cache, what these calls need, and make the calls.

    Args:
        uses: the calls.
        progress: told before, after each kernel, and at the end: stage "compiling kernels".

    Returns:
        The number of kernels that were not in the cache; calls whose kernels cannot be told apart count as one a group.
    """
    units = _missing(uses) if is_kept(copy_rows) else []
    n_done, n_total = 0, len(units) + len(uses)

    def tell(n_more: int) -> None:
        nonlocal n_done
        n_done += n_more
        progress(Progress(STAGE, n_done, n_total, "kernels"))

    tell(0)
    n_process = min(len(units), n_processor(), MOST_PROCESSES)
    for _ in _compiled(units, n_process):
        tell(1)
    for use in uses:
        use.run()
        tell(1)
    return len(units)


def _missing(uses: Sequence[Use]) -> list[Unit]:
    """What is not in the cache, the longest first."""
    whole: dict[str, list[Use]] = {}
    kernels: dict[Missing, None] = {}
    for use in uses:
        try:
            with collecting() if use.is_divisible else loading_only() as found:
                use.run()
        except NotKept:
            whole.setdefault(use.group, []).append(use)
        else:
            kernels |= dict.fromkeys(found or ())
    groups = sorted(whole.values(), key=lambda group: max(use.weight for use in group), reverse=True)
    ordered = sorted(kernels, key=lambda kernel: kernel.weight, reverse=True)
    runs = ([use.run for use in group] for group in groups)
    return [*(partial(_in_turn, run) for run in runs), *(kernel.compile for kernel in ordered)]


def _in_turn(runs: Sequence[Unit]) -> None:
    for run in runs:
        run()


def _compiled(units: Sequence[Unit], n_process: int) -> Iterator[None]:
    """Yield when a unit is compiled, by this process or one of `n_process` - 1 others."""
    waiting: SimpleQueue[Unit] = SimpleQueue()
    done: SimpleQueue[bool] = SimpleQueue()
    for unit in units:
        waiting.put(unit)
    n_left = 0
    with ExitStack() as stack:
        for _ in range(n_process - 1):
            with suppress(OSError):
                worker = stack.enter_context(_process())
                threading.Thread(target=_lead, args=(worker, waiting, done), daemon=True).start()
                n_left += 1
        while n_left or not waiting.empty():
            with suppress(Empty):
                while True:
                    waiting.get_nowait()()
                    yield
            if n_left and done.get():
                yield
            else:
                n_left = max(0, n_left - 1)


@contextmanager
def _process() -> Iterator[subprocess.Popen[str]]:
    """A process that compiles what it is told, a line for each unit; it ends with the block."""
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


def _lead(worker: subprocess.Popen[str], waiting: SimpleQueue[Unit], done: SimpleQueue[bool]) -> None:
    """Give one process unit after unit, once it has started, until none is left or it ends."""
    is_there = _answered(worker)
    with suppress(Empty):
        while is_there:
            unit = waiting.get_nowait()
            is_there = _asked(worker, unit)
            if is_there:
                done.put(True)
            else:
                waiting.put(unit)
    done.put(False)


def _asked(worker: subprocess.Popen[str], unit: Unit) -> bool:
    """Whether the process, which has started, has compiled a unit."""
    assert worker.stdin is not None
    with suppress(OSError, ValueError):
        worker.stdin.write(b64encode(pickle.dumps(unit)).decode() + "\n")
        worker.stdin.flush()
        return _answered(worker)
    return False


def _answered(worker: subprocess.Popen[str]) -> bool:
    assert worker.stdout is not None
    with suppress(OSError, ValueError):
        return worker.stdout.readline() != ""
    return False


def main() -> None:
    """Say by a line that this process has started; compile what standard input names, and answer each line with one."""
    _answer()
    for line in sys.stdin:
        pickle.loads(b64decode(line))()
        _answer()


def _answer() -> None:
    sys.stdout.write("\n")
    sys.stdout.flush()
