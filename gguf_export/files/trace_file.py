"""A trace of a run in a file: what each thread did, and when, for chrome://tracing and ui.perfetto.dev."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from gguf_export.files.opening import FileId, file_id, status_of
from gguf_export.files.outputs import refuse_outputs
from gguf_export.files.replacing import write_text
from quantize.exceptions import OutputError
from quantize.tracing import Recorder, recording

__all__ = ["traced"]


@contextmanager
def traced(
    path: Path,
    *,
    recorder: Recorder | None = None,
    beside: Iterable[Path] = (),
    on_failure: Callable[[OutputError], None],
) -> Iterator[None]:
    """Record what threads do within the block and write it to a file, whatever ends the block, Ctrl-C, too.

    Args:
        path: of the file, in Chrome's trace event format; one that exists is replaced.
        recorder: keeps the spans; it may hold some already.
        beside: other files that the run reads or writes.
        on_failure: told that the file cannot be written, where an error is on its way already.

    Raises:
        OutputError: the file could not be written, which is asked before the block; it cannot be written at its end, or
            the block itself has put a file there.
    """
    refuse_outputs([path], force=True, inputs=beside)
    before = _identity(path)
    recorder = recorder or Recorder()
    try:
        with recording(recorder):
            yield
    except BaseException:
        try:
            _write(path, before, recorder)
        except OutputError as failure:
            on_failure(failure)
        raise
    _write(path, before, recorder)


def _write(path: Path, before: FileId | None, recorder: Recorder) -> None:
    if _identity(path) != before:
        raise OutputError(
            str(path), "was written by the run, and is no place for its trace", "name another file"
        )
    write_text(path, recorder.chrome_json())


def _identity(path: Path) -> FileId | None:
    status = status_of(path)
    return None if status is None else file_id(status)
