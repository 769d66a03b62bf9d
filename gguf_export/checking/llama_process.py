"""llama.cpp, where `xllamacpp` is installed, asked in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

__all__ = ["PACKAGE", "ask", "is_installed", "program"]

PACKAGE = "xllamacpp"
_BOOT = "import sys; sys.path[:0] = {paths!r}; from {worker} import main; main(*{arguments!r})"


def is_installed() -> bool:
    """Whether there is a llama.cpp to ask."""
    return find_spec(PACKAGE) is not None


def program() -> str | None:
    """The llama.cpp that would be asked, and its version; None where there is none."""
    return f"{PACKAGE} {metadata.version(PACKAGE)}" if is_installed() else None


def ask(
    worker: str, arguments: Sequence[str | int], asked: Any, seconds: float
) -> subprocess.CompletedProcess[bytes]:
    """Run a worker, whose `main` answers by `llama_server.answer`: its standard output is the answer, as JSON.

    Args:
        worker: name of its module.
        arguments: for its `main`.
        asked: what it reads on its standard input, as JSON takes it.
        seconds: after which it is stopped.

    Raises:
        subprocess.TimeoutExpired: it was stopped.
    """
    paths = [str(Path(__file__).parents[2]), *(path for path in sys.path if path)]
    boot = _BOOT.format(paths=paths, worker=worker, arguments=tuple(arguments))
    return subprocess.run(
        [sys.executable, "-I", "-X", "utf8", "-c", boot],
        input=json.dumps(asked).encode(),
        capture_output=True,
        timeout=seconds,
        check=False,
    )
