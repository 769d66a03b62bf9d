"""How much of a file the Hub's fast transfer (hf_xet) has sent.

It tells nobody but a class of the Hub's client that draws bars, and only where bars are wanted; within `telling`
another class stands in its place. Where a version of the client has no such class, a file is sent without a word.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from huggingface_hub.utils import _xet_progress_reporting as reporting
from huggingface_hub.utils import disable_progress_bars, enable_progress_bars

__all__ = ["telling"]

NAME = "XetUploadProgressReporter"


@contextmanager
def telling(on_read: Callable[[int], None]) -> Iterator[None]:
    """Within the block, `on_read` is told how many bytes of what is sent are done; in another thread, it may be."""
    usual = getattr(reporting, NAME, None)
    if usual is None:
        yield
        return

    class Reporter:
        def __init__(self, *_: Any, **__: Any) -> None:
            pass

        def update_progress(self, report: Any, _files: Any = None) -> None:
            on_read(report.total_bytes_completed)

        def close(self) -> None:
            pass

    setattr(reporting, NAME, Reporter)
    enable_progress_bars()
    try:
        yield
    finally:
        disable_progress_bars()
        setattr(reporting, NAME, usual)
