"""What one process takes: its time, the time of its threads, its memory, and what it writes."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass
class Run:
    """What one process took."""

    seconds: float  # wall
    cpu: float  # seconds of all threads
    peak: int  # bytes of resident memory
    written: int  # bytes
    output: str


def measured(command: Sequence[str], folder: Path) -> Run:
    """Run a command in a process whose resources are its own; what it wrote to `folder` is counted and removed."""
    start = time.monotonic()
    with tempfile.TemporaryFile("w+") as output:
        child = subprocess.Popen(command, stdout=output, stderr=subprocess.DEVNULL)
        _, status, used = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        text = output.read()
    if child.returncode:
        sys.exit(f"{command[0]} failed with status {child.returncode}: {' '.join(command)}")
    seconds = time.monotonic() - start
    cpu = used.ru_utime + used.ru_stime
    return Run(
        seconds, cpu, used.ru_maxrss * 1024, sum(f.stat().st_size for f in folder.glob("*.gguf")), text
    )


def show(name: str, run: Run, rest: str = "") -> None:
    written, peak = run.written / 2**30, run.peak / 2**20
    print(
        f"{name:42} {run.seconds:8.1f} s {run.cpu:8.1f} s CPU {written:7.2f} GiB {peak:7.0f} MiB peak  {rest}",
        flush=True,
    )
