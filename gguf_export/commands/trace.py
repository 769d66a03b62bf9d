"""The option `--trace`: a verb's run, as a file that shows what each thread did, and when."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from functools import wraps
from pathlib import Path
from typing import Any

import click

from gguf_export.commands.importing import importing
from gguf_export.commands.options import FILE
from gguf_export.commands.verb import option

__all__ = ["TRACE"]


def TRACE(verb: Callable[..., Any]) -> Callable[..., Any]:  # noqa: N802 - an option, like QUIET
    """Declare the option; the verb knows nothing of it."""

    @option(
        "--trace",
        type=FILE,
        metavar="FILE.json",
        help="Write what each thread did, and when, for ui.perfetto.dev or chrome://tracing; FILE is replaced where it "
        "exists.",
    )
    @wraps(verb)
    def run(*, trace: Path | None, **values: Any) -> Any:
        if trace is None:
            return verb(**values)
        return _traced(trace, lambda: verb(**values))

    return run


def _traced(path: Path, work: Callable[[], Any]) -> Any:
    """Do the work, and write its trace, which begins with the process."""
    from quantize.tracing import Recorder, process_start, recording

    recorder = Recorder(process_start())
    recorder.add("start", recorder.start, time.perf_counter_ns() - recorder.start, time.process_time_ns(), {})
    with recording(recorder), importing():
        from gguf_export.commands.messages import error_line
        from gguf_export.commands.streams import tell
        from gguf_export.files.trace_file import traced
        from quantize.sources.checkpoint_files import files_of_model

    named = list(_paths(click.get_current_context().params))
    if any(other.absolute() == path.absolute() for other in named):
        raise click.UsageError(f"--trace {path}: that file is named elsewhere in the command")
    beside = [file for other in named for file in files_of_model(other)]
    with traced(path, recorder=recorder, beside=beside, on_failure=lambda failure: tell(error_line(failure))):
        return work()


def _paths(params: Mapping[str, Any]) -> Iterator[Path]:
    """The files and folders that a command names, once more without the NAME= that may stand in front of them."""
    for name, value in params.items():
        for one in value if isinstance(value, tuple) else (value,):
            if isinstance(one, Path) and name != "trace":
                yield one
            elif isinstance(one, str) and name in ("paths", "texts", "words", "imatrix"):
                yield from (Path(one), Path(one.rpartition("=")[2]))
