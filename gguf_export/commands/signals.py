"""Signals that ask a run to end: it ends as it does on Ctrl-C, keeps what is done, and leaves no lock behind."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType

__all__ = ["Stopped", "orderly_stops"]

PATIENCE = 5.0
"""Seconds in which further signals are taken for the same wish: a terminal that closes sends several, and who presses
Ctrl-C twice must not break off the keeping of what is done. Later ones count anew, should the first have been lost."""


class Stopped(KeyboardInterrupt):
    """A signal other than Ctrl-C's came; `name` is such as "SIGTERM", `status` what the process exits with."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.name, self.status = signal.Signals(number).name, 128 + number


@contextlib.contextmanager
def orderly_stops() -> Iterator[None]:
    """Within the block, SIGTERM and SIGHUP raise `Stopped`, and Ctrl-C `KeyboardInterrupt`, in the main thread.

    A signal that is ignored, as nohup has it, stays so, and one that a program handles that calls this stays its own.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may say what signals do
        return
    last = -PATIENCE

    def stop(number: int, _frame: FrameType | None) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last < PATIENCE:
            return
        last = now
        raise KeyboardInterrupt if number == signal.SIGINT else Stopped(number)

    usual = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    if hasattr(signal, "SIGHUP"):
        usual[signal.SIGHUP] = signal.SIG_DFL
    ours = {number: how for number, how in usual.items() if signal.getsignal(number) == how}
    try:
        for number in ours:
            signal.signal(number, stop)
        yield
    finally:
        for number, how in ours.items():
            signal.signal(number, how)
